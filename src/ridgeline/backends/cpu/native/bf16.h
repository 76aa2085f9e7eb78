// bfloat16 pairs: rounding to them, and dot products with them where the ISA has none.
//
// A level's results are its own: the instruction sums a pair its own way, and takes subnormals for zero.
#pragma once

#include "simd.h"

namespace ridgeline::RL_ISA {

// acc + the sum of two bfloat16 products per lane, of w's pairs with the pair `a`.
RL_INLINE f32r dot2(f32r acc, u32r w, uint32_t a) {
  const u32r pair = a - u32r{};
#if defined(__AVX512BF16__)
  return (f32r)_mm512_dpbf16_ps((__m512)acc, (__m512bh)w, (__m512bh)pair);
#else
  acc = fma(as_f32(w << 16u), as_f32(pair << 16u), acc);
  return fma(as_f32(w & 0xffff0000u), as_f32(pair & 0xffff0000u), acc);
#endif
}

template <class F, class U>
RL_INLINE Two<F> dot2(const Two<F>& acc, const Two<U>& w, uint32_t a) {
  return {dot2(acc.lo, w.lo, a), dot2(acc.hi, w.hi, a)};
}

// Rounds to the nearest, ties to even; NaN stays NaN, and a subnormal itself.
RL_INLINE void store_bf16(uint16_t* p, f32r x) {
  const u32r bits = as_u32(x), rounded = bits + 0x7fffu + ((bits >> 16u) & 1u);
  const u32r kept = (u32r)(x == x ? (i32r)rounded : (i32r)(bits | 0x400000u));
  const u16r half = __builtin_convertvector(kept >> 16u, u16r);
  memcpy(p, &half, sizeof half);
}

template <class F>
RL_INLINE void store_bf16(uint16_t* p, const Two<F>& x) {
  store_bf16(p, x.lo);
  store_bf16(p + lanes_of<F>, x.hi);
}

}  // namespace ridgeline::RL_ISA
