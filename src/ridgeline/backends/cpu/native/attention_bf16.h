// Attention over bfloat16 pages: queries, and probabilities relative to the range's own maximum, are rounded
// to bfloat16 too; products of pairs are summed in float32, pairs ascending.
#pragma once

#include "attention.h"
#include "bf16.h"

namespace ridgeline::RL_ISA {

constexpr uint32_t ONES = 0x3f803f80;  // a pair

// Rounded as products of pairs take them: the instruction takes a subnormal for 0.
RL_INLINE void store_factors(uint16_t* p, const f32x16& x) {
#if defined(__AVX512BF16__)
  _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh((__m512)x));
#else
  store_bf16(p, x);
#endif
}

// Two vectors' worth; returns what was stored.
RL_INLINE u32x16 store_factors(uint16_t* p, const f32x16& x, const f32x16& y) {
#if defined(__AVX512BF16__)
  const __m512i pairs = (__m512i)_mm512_cvtne2ps_pbh((__m512)y, (__m512)x);
  _mm512_storeu_si512(p, pairs);
  return (u32x16)pairs;
#else
  store_bf16(p, x);
  store_bf16(p + LANES, y);
  return load_bits((const uint8_t*)p);
#endif
}

struct BF16Pages {
  typedef uint16_t P;

  static void prepare(QueryRow& row, int64_t dim, uint8_t* space) {
    const float* q = row.input;
    for (int64_t d = 0; d < dim; d += LANES)
      store_factors((uint16_t*)space + d, dim - d >= LANES ? load(q + d) : load_part(q + d, dim - d));
    row.q = space;
  }

  RL_INLINE f32x16 exponential(f32x16 x) { return exp_below(x); }

  template <int R>
  RL_INLINE void scores(QueryRow* const* rows, const Range& range, int64_t dim,
                        f32x16 (&s)[R][RANGE_VECTORS]) {
    const int32_t* q[R];
    RL_FOR (r, R) {
      q[r] = (const int32_t*)rows[r]->q;
      RL_FOR (v, RANGE_VECTORS) s[r][v] = f32x16{};
    }
    const uint8_t* keys = range.keys;
    for (int64_t d = 0; d < (dim + 1) / 2; d++, keys += PAGE * 4) {
      u32x16 pairs[RANGE_VECTORS];
      RL_FOR (v, RANGE_VECTORS) pairs[v] = load_bits(keys + v * LANES * 4);
      RL_FOR (v, RANGE_VECTORS) hold(pairs[v]);
      RL_FOR (r, R)
        RL_FOR (v, RANGE_VECTORS) s[r][v] = dot2(s[r][v], pairs[v], q[r][d]);
    }
  }

  // The weight sums what values are multiplied by, so that rounding leaves a mean a mean.
  RL_INLINE f32x16 probabilities(const f32x16 (&e)[RANGE_VECTORS], const Range&, uint16_t* p, float&) {
    f32x16 lanes = {};
    RL_FOR (v, RANGE_VECTORS / 2)
      lanes = dot2(lanes, store_factors(p + 2 * v * LANES, e[2 * v], e[2 * v + 1]), ONES);
    return lanes;
  }

  // Pairs that all rows see whole run as one tile, the others row by row, in ascending order for every row. A
  // pair's half that a row may not see is replaced by 0: not even 0 * NaN may reach it.
  template <int R>
  struct Values {
    QueryRow* const* rows;
    const Softmax<uint16_t>& softmax;
    const Range& range;
    int64_t from[R], to[R], lo, hi;  // keys of each row; pairs of all

    RL_MEMBER int32_t pair(int r, int64_t j) const {
      int32_t bits;
      memcpy(&bits, softmax.p[r] + 2 * j, sizeof bits);
      return bits;
    }

    template <int V>
    __attribute__((noinline)) void own(f32x16* acc, int r, const uint8_t* values, int64_t stride,
                                       int64_t begin, int64_t end) const {
      for (int64_t j = begin; j < end; j++) {
        const uint32_t low = 2 * j >= from[r] ? 0xffffu : 0, high = 2 * j + 1 < to[r] ? 0xffff0000u : 0;
        for (int v = 0; v < V; v++)
          acc[v] = dot2(acc[v], load_bits(values + (j * stride + v * LANES) * 4) & (low | high), pair(r, j));
      }
    }

    template <int V>
    RL_MEMBER void own_pairs(f32x16 (&acc)[V], int r, const uint8_t* values, int64_t stride, int64_t begin,
                             int64_t end) const {
      f32x16 one[V];
      RL_FOR (v, V) one[v] = acc[v];
      own<V>(one, r, values, stride, begin, end);
      RL_FOR (v, V) acc[v] = one[v];
    }

    template <int V>
    RL_MEMBER void run(int64_t column, int64_t stride) const {
      const uint8_t* values = range.values + column * PAGE * 2;
      f32x16 acc[R][V] = {};
      RL_FOR (r, R) {
        const int64_t first = from[r] / 2, end = (to[r] + 1) / 2;
        if (first < lo) own_pairs(acc[r], r, values, stride, first, end < lo ? end : lo);
      }
      for (int64_t j = lo; j < hi; j++) {
        u32x16 row[V];
        RL_FOR (v, V) row[v] = load_bits(values + (j * stride + v * LANES) * 4);
        RL_FOR (v, V) hold(row[v]);
        RL_FOR (r, R)
          RL_FOR (v, V) acc[r][v] = dot2(acc[r][v], row[v], pair(r, j));
      }
      RL_FOR (r, R) {
        const int64_t first = from[r] / 2, end = (to[r] + 1) / 2;
        if (end > hi) own_pairs(acc[r], r, values, stride, first > hi ? first : hi, end);
      }
      join_columns<R, V>(rows, acc, softmax.old_scale, softmax.new_scale, column);
    }
  };

  template <int R>
  RL_INLINE void values(QueryRow* const* rows, const Softmax<uint16_t>& softmax, const Range& range,
                        int64_t padded_dim) {
    Values<R> tile{rows, softmax, range, {}, {}, 0, PAGE / 2};
    RL_FOR (r, R) {
      const int64_t from = rows[r]->first - range.begin, to = rows[r]->end - range.begin;
      tile.from[r] = from > 0 ? from : 0;
      tile.to[r] = to < PAGE ? to : PAGE;
      const int64_t lo = (tile.from[r] + 1) / 2, hi = tile.to[r] / 2;
      tile.lo = lo > tile.lo ? lo : tile.lo;
      tile.hi = hi < tile.hi ? hi : tile.hi;
    }
    if (tile.hi < tile.lo) tile.hi = tile.lo;
    for_groups(padded_dim, tile);
  }
};

}  // namespace ridgeline::RL_ISA
