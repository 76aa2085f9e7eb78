// Float rows to int8, with a scale for each group of columns or one for the row: scale = max|x| / 127,
// q = x * (1 / scale) rounded half to even. And float rows to bfloat16.
#include "half.h"
#include "kernels.h"
#include "rowwise.h"
#include "simd.h"

namespace ridgeline::RL_ISA {
namespace {

// Magnitudes compare as integers, in which NaN is above all numbers: it must not be rounded away.
RL_INLINE i32x16 magnitude(f32x16 x) {
  return as_i32(absolute(x));
}

RL_INLINE float largest_magnitude(const float* x, int64_t n) {
  i32x16 top = {};
  for_vectors(n, [&](int64_t c, int64_t left) {
    const i32x16 m = magnitude(read(x + c, left));
    top = select(m > top, m, top);
  });
  return float_of_bits((uint32_t)largest(top));
}

// n values and zeros up to `padded`, a multiple of 32.
RL_INLINE void quantize_group(const float* x, int64_t n, int64_t padded, int8_t* q, float* scale,
                              int32_t* total) {
  *scale = largest_magnitude(x, n) / 127.0f;
  // 0, inf, NaN and scales too small to invert all store zeros; an inf or NaN scale then makes the products
  // NaN.
  const float reciprocal = 1.0f / *scale;
  const bool usable = *scale > 0 && reciprocal > 0 && reciprocal <= __FLT_MAX__;
  const f32x16 inverse = splat(usable ? reciprocal : 0.0f), zero = {};
  i32x16 sums = {};
  for (int64_t c = 0; c < padded; c += LANES) {
    const f32x16 part = n - c >= LANES ? load(x + c) : n > c ? load_part(x + c, n - c) : zero;
    sums = store_int8(q + c, usable ? part * inverse : zero, sums);
  }
  *total = sum(sums);
}

}  // namespace

void quantize(const View& x, const QuantizedView& out, Span rows) {
  const int64_t group = out.group ? out.group : out.padded;
  for (int64_t r = rows.begin; r < rows.end; r++)
    for (int64_t g = 0; g < out.groups; g++) {
      const int64_t at = g * group, left = x.cols - at < group ? x.cols - at : group;
      quantize_group(x.row(r) + at, left, group, out.q(r) + at, out.scale(r) + g, out.sum(r) + g);
    }
}

void round_bf16(const View& x, const Bf16View& out, Span rows) {
  for (int64_t r = rows.begin; r < rows.end; r++) {
    uint16_t* to = out.row(r);
    for_vectors(x.cols, [&](int64_t c, int64_t n) {
      const f32x16 v = read(x.row(r) + c, n);
      if (n == LANES) return store_bf16(to + c, v);
      uint16_t part[LANES];
      store_bf16(part, v);
      memcpy(to + c, part, (size_t)n * sizeof *part);
    });
    if (x.cols % 2) to[x.cols] = 0;
  }
}

}  // namespace ridgeline::RL_ISA
