// Attention over float32 pages: exact products, one key after the other.
#pragma once

#include "attention.h"

namespace ridgeline::RL_ISA {

// acc[r][v] += sum over k in [from, to), ascending, of a[r][k] * b[k][16 v ..].
template <int R, int V>
RL_INLINE void multiply(f32x16 (&acc)[R][V], const float* const (&a)[R], const float* b, int64_t stride,
                        int64_t from, int64_t to) {
  for (int64_t k = from; k < to; k++) {
    f32x16 row[V];
    RL_FOR (v, V) row[v] = load(b + k * stride + v * LANES);
    RL_FOR (v, V) hold(row[v]);
    RL_FOR (r, R)
      RL_FOR (v, V) acc[r][v] = fma(splat(a[r][k]), row[v], acc[r][v]);
  }
}

struct F32Pages {
  typedef float P;

  static void prepare(QueryRow& row, int64_t, uint8_t*) { row.q = (const uint8_t*)row.input; }

  RL_INLINE f32x16 exponential(f32x16 x) { return exp(x); }

  template <int R>
  RL_INLINE void scores(QueryRow* const* rows, const Range& range, int64_t dim,
                        f32x16 (&s)[R][RANGE_VECTORS]) {
    const float* q[R];
    RL_FOR (r, R) {
      q[r] = (const float*)rows[r]->q;
      RL_FOR (v, RANGE_VECTORS) s[r][v] = f32x16{};
    }
    multiply(s, q, (const float*)range.keys, PAGE, 0, dim);
  }

  RL_INLINE f32x16 probabilities(const f32x16 (&e)[RANGE_VECTORS], const Range&, float* p, float&) {
    f32x16 lanes = {};
    RL_FOR (v, RANGE_VECTORS) {
      store(p + v * LANES, e[v]);
      lanes += e[v];
    }
    return lanes;
  }

  // Keys that all rows see run as one tile, the others row by row, in ascending order for every row: a value
  // that a row may not see must never reach it, not even as 0 * NaN.
  template <int R>
  struct Values {
    QueryRow* const* rows;
    const Softmax<float>& softmax;
    const Range& range;
    int64_t from[R], to[R], lo, hi;

    template <int V>
    RL_MEMBER void own(f32x16 (&acc)[V], int r, const float* values, int64_t stride, int64_t begin,
                       int64_t end) const {
      f32x16 one[1][V];
      const float* p[1] = {softmax.p[r]};
      RL_FOR (v, V) one[0][v] = acc[v];
      multiply(one, p, values, stride, begin, end);
      RL_FOR (v, V) acc[v] = one[0][v];
    }

    template <int V>
    RL_MEMBER void run(int64_t column, int64_t stride) const {
      const float* values = (const float*)range.values + column * PAGE;
      f32x16 acc[R][V] = {};
      const float* p[R];
      RL_FOR (r, R) {
        p[r] = softmax.p[r];
        if (from[r] < lo) own(acc[r], r, values, stride, from[r], to[r] < lo ? to[r] : lo);
      }
      multiply(acc, p, values, stride, lo, hi);
      RL_FOR (r, R)
        if (to[r] > hi) own(acc[r], r, values, stride, from[r] > hi ? from[r] : hi, to[r]);
      join_columns<R, V>(rows, acc, softmax.old_scale, softmax.new_scale, column);
    }
  };

  template <int R>
  RL_INLINE void values(QueryRow* const* rows, const Softmax<float>& softmax, const Range& range,
                        int64_t padded_dim) {
    Values<R> tile{rows, softmax, range, {}, {}, 0, PAGE};
    RL_FOR (r, R) {
      const int64_t from = rows[r]->first - range.begin, to = rows[r]->end - range.begin;
      tile.from[r] = from > 0 ? from : 0;
      tile.to[r] = to < PAGE ? to : PAGE;
      tile.lo = tile.from[r] > tile.lo ? tile.from[r] : tile.lo;
      tile.hi = tile.to[r] < tile.hi ? tile.to[r] : tile.hi;
    }
    if (tile.hi < tile.lo) tile.hi = tile.lo;
    for_groups(padded_dim, tile);
  }
};

}  // namespace ridgeline::RL_ISA
