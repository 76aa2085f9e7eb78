// exp, tanh and erf on 16 lanes, from textbook range reductions and Taylor, minimax or rational
// approximations.
//
// Errors of exp, tanh and erf are a few units in the last place; exp(-inf) is 0 and exp(0) is exactly 1,
// which attention relies on.
#pragma once

#include "simd.h"

namespace ridgeline::RL_ISA {

RL_INLINE f32x16 exp(f32x16 x) {
  x = minimum(splat(100.0f), maximum(splat(-110.0f), x));  // in this order NaN stays NaN
  const f32x16 n = round_even(x * 1.44269504f);
  f32x16 r =
      fma(n, splat(-0.693145752f), x);  // ln 2 in two parts, the first short enough that n * part is exact
  r = fma(n, splat(-1.42860677e-6f), r);
  f32x16 p = splat(1 / 720.0f);
  p = fma(p, r, splat(1 / 120.0f));
  p = fma(p, r, splat(1 / 24.0f));
  p = fma(p, r, splat(1 / 6.0f));
  p = fma(p, r, splat(0.5f));
  p = fma(p, r, splat(1.0f));
  p = fma(p, r, splat(1.0f));
  return scale_by_power(p, n);
}

// exp for x <= 0 that is rounded to 8 bits next: two thirds of its operations. The quartic is the minimax one
// of 2^r on |r| <= 1/2 that is 1 at 0, off by 3e-6.
RL_INLINE f32x16 exp_below(f32x16 x) {
  const f32x16 t = maximum(splat(-160.0f), x * 1.44269504f);
  const f32x16 n = round_even(t), r = t - n;
  f32x16 p = fma(splat(0.00958285760f), r, splat(0.0559064373f));
  p = fma(p, r, splat(0.240240991f));
  p = fma(p, r, splat(0.693124175f));
  return scale_by_power(fma(p, r, splat(1.0f)), n);
}

RL_INLINE f32x16 tanh(f32x16 x) {
  const f32x16 a = absolute(x), z = x * x;
  // Near 0 the quotient cancels; there the odd series (minimax on |x| < 0.625, as in Cephes) is exact enough.
  f32x16 p = splat(-5.70498872745e-3f);
  p = fma(p, z, splat(2.06390887954e-2f));
  p = fma(p, z, splat(-5.37397155531e-2f));
  p = fma(p, z, splat(1.33314422036e-1f));
  p = fma(p, z, splat(-3.33332819422e-1f));
  const f32x16 small = fma(p * z, x, x);
  const f32x16 large = 1.0f - 2.0f / (exp(a + a) + 1.0f);
  return select(a < 0.625f, small, with_sign(large, x));
}

// Abramowitz & Stegun 7.1.26: absolute error below 1.5e-7.
RL_INLINE f32x16 erf(f32x16 x) {
  const f32x16 a = absolute(x);
  const f32x16 t = 1.0f / fma(splat(0.3275911f), a, splat(1.0f));
  f32x16 p = splat(1.061405429f);
  p = fma(p, t, splat(-1.453152027f));
  p = fma(p, t, splat(1.421413741f));
  p = fma(p, t, splat(-0.284496736f));
  p = fma(p, t, splat(0.254829592f));
  const f32x16 y = 1.0f - p * t * exp(-(a * a));
  return with_sign(y, x);
}

}  // namespace ridgeline::RL_ISA
