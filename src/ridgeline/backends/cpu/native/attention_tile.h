// One 64-key range of one KV head against a few query rows: scores, their own softmax, and the
// merge into the rows.
//
// What a row computes depends on its own query and visible keys alone: tiles only run rows side by side.
#pragma once

#include "kernels.h"
#include "simd.h"
#include "vmath.h"

namespace ridgeline::RL_ISA {

constexpr int RANGE_VECTORS = PAGE / LANES;

struct QueryRow {
  const float* q;      // [head_dim]
  float* total;        // [head_dim, padded to 16]: sum of probability * value so far, relative to `top`
  float* out;          // [head_dim]
  float top, weight;   // maximum score and sum of probabilities so far
  float slope;         // ALiBi, 0 for none
  int64_t first, end;  // visible keys
  int64_t position;    // of the query itself
  float sink;          // -inf for none
};

struct Scores {
  alignas(64) float p[TILE_ROWS][PAGE];
  float old_scale[TILE_ROWS], new_scale[TILE_ROWS];
};

struct Range {
  const uint8_t *keys, *values;
  int64_t begin;  // absolute position of its first key
};

// V vectors of stored values. Four bfloat16 vectors come as even and odd halves of 32 values, the cheap way
// to widen them; `natural_order` puts sums over them right.
template <int V>
RL_INLINE void load_row(f32x16 (&row)[V], const float* p) {
  RL_FOR (v, V) row[v] = load(p + v * LANES);
}

template <int V>
RL_INLINE void load_row(f32x16 (&row)[V], const uint16_t* p) {
  if constexpr (V == 1) {
    row[0] = load_bf16(p);
  } else {
    RL_UNROLL for (int v = 0; v < V; v += 2) {
      const u32x16 pairs = load_bits((const uint8_t*)(p + v * LANES));
      row[v] = bf16_low(pairs);
      row[v + 1] = bf16_high(pairs);
    }
  }
}

template <class T, int V>
RL_INLINE void natural_order(f32x16 (&sums)[V]) {
  if constexpr (sizeof(T) == 2 && V > 1)
    RL_UNROLL for (int v = 0; v < V; v += 2) interleave(sums[v], sums[v + 1]);
}

// acc[r][v] += sum over k in [from, to), ascending, of a[r][k] * b[k][16 v ..].
template <class T, int R, int V>
RL_INLINE void multiply(f32x16 (&acc)[R][V], const float* const (&a)[R], const T* b, int64_t stride,
                        int64_t from, int64_t to) {
  for (int64_t k = from; k < to; k++) {
    f32x16 row[V];
    load_row(row, b + k * stride);
    RL_FOR (r, R)
      RL_FOR (v, V) acc[r][v] = fma(splat(a[r][k]), row[v], acc[r][v]);
  }
}

// Raw products to scores of one row: scale, softcap, slope, -inf where the row may not look.
// Returns their maximum.
RL_INLINE float finish_scores(const AttentionArgs& a, const QueryRow& row, f32x16 (&s)[RANGE_VECTORS],
                              int64_t begin) {
  const i32x16 lane = lane_index();
  const f32x16 none = splat(-__builtin_inff());
  const bool whole = row.first <= begin && row.end >= begin + PAGE;
  const int32_t lo = (int32_t)(row.first - begin), hi = (int32_t)(row.end - begin);
  f32x16 top = none;
  RL_FOR (v, RANGE_VECTORS) {
    const i32x16 key = lane + v * LANES;
    s[v] *= a.scale;
    if (a.softcap > 0) s[v] = a.softcap * tanh(s[v] / a.softcap);
    if (row.slope != 0) s[v] += row.slope * to_f32(key + (int32_t)(begin - row.position));
    if (!whole) s[v] = select((key >= lo) & (key < hi), s[v], none);
    top = maximum(s[v], top);
  }
  return largest(top);
}

// Scores of R rows to probabilities relative to the range's own maxima; merges maxima and
// weights into the rows.
template <int R>
RL_INLINE void softmax_range(QueryRow* const* rows, f32x16 (&s)[R][RANGE_VECTORS], const float (&tops)[R],
                             Scores& scores) {
  static_assert(2 * TILE_ROWS <= LANES);
  float changes[LANES] = {};  // of the maximum: the row's so far, and the range's, against the new one
  RL_FOR (r, R) {
    const float merged = rows[r]->top > tops[r] ? rows[r]->top : tops[r];
    changes[r] = rows[r]->top - merged;
    changes[TILE_ROWS + r] = tops[r] - merged;
    rows[r]->top = merged;
  }
  store(changes, exp(load(changes)));
  RL_FOR (r, R) {
    f32x16 total = {};
    RL_FOR (v, RANGE_VECTORS) {
      const f32x16 e = exp(s[r][v] - tops[r]);  // exactly 0 where the score is -inf
      store(scores.p[r] + v * LANES, e);
      total += e;
    }
    scores.old_scale[r] = changes[r];
    scores.new_scale[r] = changes[TILE_ROWS + r];
    rows[r]->weight = rows[r]->weight * scores.old_scale[r] + sum(total) * scores.new_scale[r];
  }
}

template <class T, int R>
RL_INLINE void score_tile(const AttentionArgs& a, QueryRow* const* rows, const Range& range, Scores& scores) {
  f32x16 s[R][RANGE_VECTORS] = {};
  const float* q[R];
  float tops[R];
  RL_FOR (r, R) q[r] = rows[r]->q;
  multiply(s, q, (const T*)range.keys, PAGE, 0, a.kv.head_dim);
  RL_FOR (r, R) {
    natural_order<T>(s[r]);
    tops[r] = finish_scores(a, *rows[r], s[r], range.begin);
  }
  softmax_range(rows, s, tops, scores);
}

// total = total * old_scale + new_scale * (P V) over 16 V columns, for rows whose keys start at the same
// `from`. The keys all of them see run as one tile, the rest row by row: a value that a row may not see must
// never reach it, not even as 0 * NaN.
template <class T, int R, int V>
RL_INLINE void value_columns(QueryRow* const* rows, const Scores& scores, int at, int64_t column,
                             const T* values, int64_t stride, int64_t from, const int64_t (&to)[R]) {
  f32x16 acc[R][V] = {};
  const float* p[R];
  int64_t common = to[0];
  RL_FOR (r, R) {
    p[r] = scores.p[at + r];
    common = to[r] < common ? to[r] : common;
  }
  values += column;
  multiply(acc, p, values, stride, from, common);
  RL_FOR (r, R) {
    for (int64_t k = common; k < to[r]; k++) {
      f32x16 row[V];
      load_row(row, values + k * stride);
      RL_FOR (v, V) acc[r][v] = fma(splat(p[r][k]), row[v], acc[r][v]);
    }
    natural_order<T>(acc[r]);
    RL_FOR (v, V) {
      float* total = rows[r]->total + column + v * LANES;
      store(total, fma(acc[r][v], splat(scores.new_scale[at + r]), load(total) * scores.old_scale[at + r]));
    }
  }
}

template <class T, int R>
RL_INLINE void value_tile(QueryRow* const* rows, const Scores& scores, int at, const Range& range,
                          int64_t head_dim) {
  const int64_t lo = rows[0]->first - range.begin, from = lo > 0 ? lo : 0;
  int64_t to[R];
  RL_FOR (r, R) {
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
