// One 64-key range of one KV head against a few query rows: scores, their own softmax, and the merge into the rows.
//
// What a row computes depends on its own query and visible keys alone: tiles only run rows side by side.
#pragma once

#include "kernels.h"
#include "simd.h"
#include "vmath.h"

namespace ridgeline::RL_ISA {

constexpr int RANGE_VECTORS = PAGE / LANES;

struct QueryRow {
  const float* q;       // [head_dim]
  float* total;         // [head_dim, padded to 16]: sum of probability * value so far, relative to `top`
  float* out;           // [head_dim]
  float top, weight;    // maximum score and sum of probabilities so far
  float slope;          // ALiBi, 0 for none
  int64_t first, end;   // visible keys
  int64_t position;     // of the query itself
  float sink;           // -inf for none
};

struct Scores {
  alignas(64) float p[TILE_ROWS][PAGE];
  float old_scale[TILE_ROWS], new_scale[TILE_ROWS];
};

struct Range {
  const uint8_t *keys, *values;
  int64_t begin;  // absolute position of its first key
};

RL_INLINE f32x16 load_kv(const float* p) { return load(p); }

RL_INLINE f32x16 load_kv(const uint16_t* p) { return load_bf16(p); }

// acc[r][v] += sum over k in [from, to), ascending, of a[r][k] * b[k][16 v ..].
template <class T, int R, int V>
RL_INLINE void multiply(f32x16 (&acc)[R][V], const float* const (&a)[R], const T* b, int64_t stride, int64_t from,
                        int64_t to) {
  for (int64_t k = from; k < to; k++) {
    f32x16 row[V];
    RL_UNROLL for (int v = 0; v < V; v++) row[v] = load_kv(b + k * stride + v * LANES);
    RL_UNROLL for (int r = 0; r < R; r++)
      RL_UNROLL for (int v = 0; v < V; v++) acc[r][v] = fma(splat(a[r][k]), row[v], acc[r][v]);
  }
}

// Turns scores of one row into probabilities relative to the range's own maximum, and merges maximum and weight.
RL_INLINE void softmax_range(const AttentionArgs& a, QueryRow& row, f32x16 (&s)[RANGE_VECTORS], int64_t begin,
                             float* p, float& old_scale, float& new_scale) {
  const i32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const int32_t lo = (int32_t)(row.first - begin), hi = (int32_t)(row.end - begin);
  i32x16 visible[RANGE_VECTORS];
  f32x16 top = splat(-__builtin_inff());
  RL_UNROLL for (int v = 0; v < RANGE_VECTORS; v++) {
    const i32x16 key = lane + v * LANES;
    visible[v] = (key >= lo) & (key < hi);
    s[v] *= a.scale;
    if (a.softcap > 0) s[v] = a.softcap * tanh(s[v] / a.softcap);
    if (row.slope != 0) s[v] += row.slope * to_f32(key + (int32_t)(begin - row.position));
    s[v] = visible[v] ? s[v] : splat(-__builtin_inff());
    top = maximum(s[v], top);
  }
  const float range_top = largest(top);
  f32x16 total = {};
  RL_UNROLL for (int v = 0; v < RANGE_VECTORS; v++) {
    const f32x16 e = visible[v] ? exp(s[v] - range_top) : f32x16{};
    store(p + v * LANES, e);
    total += e;
  }
  const float merged = row.top > range_top ? row.top : range_top;
  const f32x16 scales = exp(f32x16{row.top - merged, range_top - merged});
  old_scale = scales[0];
  new_scale = scales[1];
  row.weight = row.weight * old_scale + sum(total) * new_scale;
  row.top = merged;
}

template <class T, int R>
RL_INLINE void score_tile(const AttentionArgs& a, QueryRow* const* rows, const Range& range, Scores& scores) {
  f32x16 s[R][RANGE_VECTORS] = {};
  const float* q[R];
  RL_UNROLL for (int r = 0; r < R; r++) q[r] = rows[r]->q;
  multiply(s, q, (const T*)range.keys, PAGE, 0, a.kv.head_dim);
  for (int r = 0; r < R; r++)
    softmax_range(a, *rows[r], s[r], range.begin, scores.p[r], scores.old_scale[r], scores.new_scale[r]);
}

// total = total * old_scale + new_scale * (P V) over 16 V columns, for rows whose keys start at the same `from`. The
// keys all of them see run as one tile, the rest row by row: a value that a row may not see must never reach it, not
// even as 0 * NaN.
template <class T, int R, int V>
RL_INLINE void value_columns(QueryRow* const* rows, const Scores& scores, int at, int64_t column, const T* values,
                             int64_t stride, int64_t from, const int64_t (&to)[R]) {
  f32x16 acc[R][V] = {};
  const float* p[R];
  int64_t common = to[0];
  RL_UNROLL for (int r = 0; r < R; r++) {
    p[r] = scores.p[at + r];
    common = to[r] < common ? to[r] : common;
  }
  values += column;
  multiply(acc, p, values, stride, from, common);
  RL_UNROLL for (int r = 0; r < R; r++) {
    for (int64_t k = common; k < to[r]; k++)
      RL_UNROLL for (int v = 0; v < V; v++)
        acc[r][v] = fma(splat(p[r][k]), load_kv(values + k * stride + v * LANES), acc[r][v]);
    RL_UNROLL for (int v = 0; v < V; v++) {
      float* total = rows[r]->total + column + v * LANES;
      store(total, fma(acc[r][v], splat(scores.new_scale[at + r]), load(total) * scores.old_scale[at + r]));
    }
  }
}

template <class T, int R>
RL_INLINE void value_tile(QueryRow* const* rows, const Scores& scores, int at, const Range& range, int64_t head_dim) {
  const int64_t lo = rows[0]->first - range.begin, from = lo > 0 ? lo : 0;
  int64_t to[R];
  RL_UNROLL for (int r = 0; r < R; r++) {
    const int64_t hi = rows[r]->end - range.begin;
    to[r] = hi < PAGE ? hi : PAGE;
  }
  int64_t column = 0;
  for (; column + 4 * LANES <= head_dim; column += 4 * LANES)
    value_columns<T, R, 4>(rows, scores, at, column, (const T*)range.values, head_dim, from, to);
  for (; column < head_dim; column += LANES)
    value_columns<T, R, 1>(rows, scores, at, column, (const T*)range.values, head_dim, from, to);
}

}  // namespace ridgeline::RL_ISA
