// Attention over int8 pages: queries become int8 with one scale, probabilities times the values' scales
// unsigned bytes relative to the range's own maximum; products are summed exactly.
#pragma once

#include "attention.h"

namespace ridgeline::RL_ISA {

// acc + the dot product of the 4 unsigned bytes of p with the 4 signed bytes of each lane of v; exact.
RL_INLINE i32r dot4_signed(i32r acc, u32r v, uint32_t p) {
#if defined(__AVX512VNNI__)
  return (i32r)_mm512_dpbusd_epi32((__m512i)acc, _mm512_set1_epi32((int)p), (__m512i)v);
#else
  typedef int16_t i16r __attribute__((vector_size(RL_BYTES)));
  const i16r pairs = (i16r)v;
  const int32_t even = (int32_t)(p & 0x00ff00ffu), odd = (int32_t)((p >> 8) & 0x00ff00ffu);
  return acc + (madd((u32r)((pairs << 8) >> 8), even) + madd((u32r)(pairs >> 8), odd));
#endif
}

template <class I, class U>
RL_INLINE Two<I> dot4_signed(const Two<I>& acc, const Two<U>& v, uint32_t p) {
  return {dot4_signed(acc.lo, v.lo, p), dot4_signed(acc.hi, v.hi, p)};
}

struct Int8Pages {
  typedef uint8_t P;

  static void prepare(QueryRow& row, int64_t dim, uint8_t* space) {
    const float* q = row.input;
    f32x16 most = {};
    for (int64_t d = 0; d < dim; d += LANES)
      most = maximum(absolute(dim - d >= LANES ? load(q + d) : load_part(q + d, dim - d)), most);
    const float top = largest(most), inverse = top > 0 ? 127 / top : 0;
    i32x16 total = {};
    f32x16 spoiled = {};  // NaN if a value is NaN or infinite
    for (int64_t d = 0; d < dim; d += LANES) {
      const f32x16 x = dim - d >= LANES ? load(q + d) : load_part(q + d, dim - d);
      total = store_int8((int8_t*)space + d, x * inverse, total);
      spoiled += x * 0.0f;
    }
    row.q = space;
    row.q_scale = top / 127 + sum(spoiled);
    row.q_sum = sum(total);
  }

  RL_INLINE f32x16 exponential(f32x16 x) { return exp_below(x); }

  template <int R>
  RL_INLINE void scores(QueryRow* const* rows, const Range& range, int64_t dim,
                        f32x16 (&s)[R][RANGE_VECTORS]) {
    const int32_t* q[R];
    i32x16 acc[R][RANGE_VECTORS];
    RL_FOR (r, R) {
      q[r] = (const int32_t*)rows[r]->q;
      RL_FOR (v, RANGE_VECTORS) acc[r][v] = splat(-128 * rows[r]->q_sum);  // keys are stored 128 higher
    }
    const uint8_t* keys = range.keys;
    for (int64_t d = 0; d < (dim + 3) / 4; d++, keys += PAGE * 4) {
      u32x16 fours[RANGE_VECTORS];
      RL_FOR (v, RANGE_VECTORS) fours[v] = load_bits(keys + v * LANES * 4);
      RL_FOR (v, RANGE_VECTORS) hold(fours[v]);
      RL_FOR (r, R)
        RL_FOR (v, RANGE_VECTORS) acc[r][v] = dot4(acc[r][v], fours[v], q[r][d]);
    }
    RL_FOR (v, RANGE_VECTORS) {
      const f32x16 scale = load_bf16((const uint16_t*)range.key_scales + v * LANES);
      RL_FOR (r, R) s[r][v] = to_f32(acc[r][v]) * (scale * rows[r]->q_scale);
    }
  }

  // A value's scale goes into its probability first. Where that is 0, the scale may be anything.
  RL_INLINE f32x16 probabilities(const f32x16 (&e)[RANGE_VECTORS], const Range& range, uint8_t* p,
                                 float& value_scale) {
    f32x16 lanes = {}, spoiled = {}, most = {}, scaled[RANGE_VECTORS];
    RL_FOR (v, RANGE_VECTORS) {
      const f32x16 scale = load_bf16((const uint16_t*)range.value_scales + v * LANES);
      scaled[v] = select(e[v] > 0.0f, e[v] * scale, f32x16{});
      most = maximum(scaled[v], most);
      spoiled += scaled[v];
      lanes += e[v];
    }
    const float top = largest(most), inverse = top > 0 ? 255 / top : 0;
    RL_FOR (v, RANGE_VECTORS)
      store_bytes((int8_t*)p + v * LANES, as_i32(scaled[v] * inverse + 0x1.8p23f) - 0x4b400000);
    value_scale = top / 255;
    return fma(spoiled, splat(0.0f), lanes);  // a value that is no number leaves no result
  }

  template <int R>
  struct Values {
    QueryRow* const* rows;
    const Softmax<uint8_t>& softmax;
    const Range& range;

    template <int V>
    RL_MEMBER void run(int64_t column, int64_t stride) const {
      const uint8_t* values = range.values + column * PAGE;
      i32x16 acc[R][V] = {};
      for (int64_t j = 0; j < PAGE / 4; j++, values += stride * 4) {
        u32x16 row[V];
        RL_FOR (v, V) row[v] = load_bits(values + v * LANES * 4);
        RL_FOR (v, V) hold(row[v]);
        RL_FOR (r, R) {
          uint32_t four;
          memcpy(&four, softmax.p[r] + 4 * j, sizeof four);
          RL_FOR (v, V) acc[r][v] = dot4_signed(acc[r][v], row[v], four);
        }
      }
      f32x16 sums[R][V];
      RL_FOR (r, R)
        RL_FOR (v, V) sums[r][v] = to_f32(acc[r][v]) * softmax.value_scale[r];
      join_columns<R, V>(rows, sums, softmax.old_scale, softmax.new_scale, column);
    }
  };

  template <int R>
  RL_INLINE void values(QueryRow* const* rows, const Softmax<uint8_t>& softmax, const Range& range,
                        int64_t padded_dim) {
    for_groups(padded_dim, Values<R>{rows, softmax, range});
  }
};

}  // namespace ridgeline::RL_ISA
