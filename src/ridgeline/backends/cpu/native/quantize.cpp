// Float rows to int8, with a scale for each group of columns or one for the row: scale = max|x| / 127,
// q = x * (1 / scale) rounded half to even. And float rows to bfloat16. Values nearer to 0 than a threshold
// become 0 first.
#include "bf16.h"
#include "half.h"
#include "kernels.h"
#include "rowwise.h"

namespace ridgeline::RL_ISA {
namespace {

RL_INLINE f32x16 cut_off(f32x16 x, float threshold) {
  return select(absolute(x) < threshold, f32x16{}, x);
}

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

// 1 / scale; or 0 for 0, inf, NaN and scales too small to invert, so that they store zeros: an inf or NaN
// scale then makes the products NaN.
RL_INLINE f32x16 inverse_of(f32x16 scale) {
  const f32x16 reciprocal = 1.0f / scale;
  const auto usable = (scale > 0.0f) & (reciprocal > 0.0f) & (as_i32(reciprocal) < 0x7f800000);
  return select(usable, reciprocal, f32x16{});
}

// 16 of n values from c on, and zeros behind them.
RL_INLINE f32x16 load_padded(const float* x, int64_t c, int64_t n) {
  return n - c >= LANES ? load(x + c) : n > c ? load_part(x + c, n - c) : f32x16{};
}

// n values and zeros up to `padded`, a multiple of 32; returns their sum.
RL_INLINE int32_t quantize_group(const float* x, int64_t n, int64_t padded, float threshold, float inverse,
                                 int8_t* q) {
  i32x16 sums = {};
  for (int64_t c = 0; c < padded; c += LANES) {
    const f32x16 part = load_padded(x, c, n);
    // 0 times inf or NaN would be NaN
    sums = store_int8(q + c, inverse != 0 ? cut_off(part, threshold) * inverse : f32x16{}, sums);
  }
  return sum(sums);
}

// The second term of a group that `scale` and `inverse` have rounded: what that left, in steps of a
// TERM_RATIOth.
RL_INLINE int32_t quantize_rest(const float* x, int64_t n, int64_t padded, float threshold, float scale,
                                float inverse, float finer, int8_t* q) {
  i32x16 sums = {};
  for (int64_t c = 0; c < padded; c += LANES) {
    const f32x16 part = cut_off(load_padded(x, c, n), threshold);
    const f32x16 rest = part - round_even(part * inverse) * scale;
    sums = store_int8(q + c, finer != 0 ? rest * finer : f32x16{}, sums);
  }
  return sum(sums);
}

}  // namespace

void quantize(const View& x, const QuantizedView& out, float threshold, Span rows) {
  const int64_t group = out.group ? out.group : out.padded;
  const auto left = [&](int64_t g) { return x.cols - g * group < group ? x.cols - g * group : group; };
  for (int64_t r = rows.begin; r < rows.end; r++) {
    count(Counted::acts, x.cols * 4 + out.stride);
    for (int64_t at = 0; at < out.groups; at += LANES) {  // divisions side by side
      const int64_t count = out.groups - at < LANES ? out.groups - at : LANES;
      float top[LANES] = {}, scales[LANES], inverse[LANES], finer[LANES];
      for (int64_t i = 0; i < count; i++)
        top[i] = largest_magnitude(x.row(r) + (at + i) * group, left(at + i));
      const f32x16 scale = cut_off(load(top), threshold) / 127.0f;  // a group may be 0 altogether
      store(scales, scale);
      store(inverse, inverse_of(scale));
      write(out.scale(r) + at, scale, count);
      for (int64_t i = 0; i < count; i++) {
        const int64_t first = (at + i) * group;
        out.sum(r)[at + i] =
            quantize_group(x.row(r) + first, left(at + i), group, threshold, inverse[i], out.q(r) + first);
      }
      if (out.terms == 1) continue;
      const QuantizedView second = out.second();
      store(finer, inverse_of(scale / (float)TERM_RATIO));
      write(second.scale(r) + at, scale / (float)TERM_RATIO, count);
      for (int64_t i = 0; i < count; i++) {
        const int64_t first = (at + i) * group;
        second.sum(r)[at + i] = quantize_rest(x.row(r) + first, left(at + i), group, threshold, scales[i],
                                              inverse[i], finer[i], second.q(r) + first);
      }
    }
  }
}

void round_bf16(const View& x, const Bf16View& out, float threshold, Span rows) {
  for (int64_t r = rows.begin; r < rows.end; r++) {
    uint16_t* to = out.row(r);
    for_vectors(x.cols, [&](int64_t c, int64_t n) {
      const f32x16 v = cut_off(read(x.row(r) + c, n), threshold);
      if (n == LANES) return store_bf16(to + c, v);
      uint16_t part[LANES];
      store_bf16(part, v);
      memcpy(to + c, part, (size_t)n * sizeof *part);
    });
    if (x.cols % 2) to[x.cols] = 0;
    count(Counted::acts, x.cols * 4 + (x.cols + 1) / 2 * 4);
  }
}

void cut(const View& x, const View& out, float threshold, Span rows) {
  for (int64_t r = rows.begin; r < rows.end; r++) {
    for_vectors(x.cols, [&](int64_t c, int64_t n) {
      write(out.row(r) + c, cut_off(read(x.row(r) + c, n), threshold), n);
    });
    count(Counted::acts, 2 * x.cols * 4);
  }
}

}  // namespace ridgeline::RL_ISA
