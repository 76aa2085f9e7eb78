// Float rows to int8 in groups of 32: scale = max|x| / 127, q = x * (1 / scale) rounded half to even.
#include "kernels.h"
#include "simd.h"

namespace ridgeline::RL_ISA {
namespace {

// Largest |a|, |b|. Magnitudes compare as integers, in which NaN is above all numbers: it must
// not be rounded away.
RL_INLINE float largest_magnitude(f32x16 a, f32x16 b) {
  const i32x16 x = as_i32(absolute(a)), y = as_i32(absolute(b));
  const int32_t top = largest_of(largest(x), largest(y));
  float out;
  memcpy(&out, &top, sizeof out);
  return out;
}

}  // namespace

void quantize(const View& x, const QuantizedView& out, Span rows) {
  for (int64_t r = rows.begin; r < rows.end; r++) {
    for (int64_t g = 0; g < out.groups; g++) {
      const float* in = x.row(r) + g * GROUP;
      const int64_t left = x.cols - g * GROUP;
      const f32x16 a = left >= LANES ? load(in) : load_part(in, left);
      const f32x16 b = left >= 2 * LANES ? load(in + LANES)
                       : left > LANES    ? load_part(in + LANES, left - LANES)
                                         : f32x16{};
      const float scale = largest_magnitude(a, b) / 127.0f;
      // 0, inf, NaN and scales too small to invert all store zeros; an inf or NaN scale then
      // makes the products NaN.
      const float reciprocal = 1.0f / scale;
      const bool usable = scale > 0 && reciprocal > 0 && reciprocal <= __FLT_MAX__;
      const f32x16 inverse = splat(usable ? reciprocal : 0.0f), zero = {};
      int8_t* q = out.q(r) + g * GROUP;
      const i32x16 first = store_int8(q, usable ? a * inverse : zero, i32x16{});
      const i32x16 total = store_int8(q + LANES, usable ? b * inverse : zero, first);
      out.scale(r)[g] = scale;
      out.sum(r)[g] = sum(total);
    }
  }
}

}  // namespace ridgeline::RL_ISA
