// One 64-key range against a few query rows: their scores' softmax and its merge into partial results.
//
// What a row computes depends on its own query and visible keys alone: tiles only run rows side by side.
#pragma once

#include "kernels.h"
#include "simd.h"
#include "vmath.h"

namespace ridgeline::RL_ISA {

#define RL_MEMBER inline __attribute__((always_inline))

constexpr int RANGE_VECTORS = PAGE / LANES;
constexpr int GROUP_VECTORS = COLUMN_GROUP / LANES;

// A partial result is a record of floats: [maximum, ...][16 lanes of weight][column sums], the sums relative
// to the maximum. See kv.h for its size.
struct QueryRow {
  const float* input;  // [head_dim], and so as the format takes it:
  const uint8_t* q;
  float q_scale;  // int8 alone: of q, and the sum of its values
  int32_t q_sum;
  float *sums, *record, *parts;  // records: of the present span, of the spans so far, and of spans kept apart
  float* out;                    // [head_dim]
  float slope;                   // ALiBi, 0 for none
  float sink;                    // -inf for none
  int64_t first, end;            // visible keys
  int64_t position;              // of the query itself
};

RL_INLINE float* weight_of(float* record) {
  return record + LANES;
}

RL_INLINE float* columns_of(float* record) {
  return record + RECORD_HEAD;
}

// Holds a loaded vector in its register: the compiler would rather load it again for every row of a tile.
template <class V>
RL_INLINE void hold(V& x) {
#if defined(__AVX512F__)
  asm("" : "+v"(x));
#else
  (void)x;
#endif
}

// Stores the key and value of one token and KV head (append.cpp).
void append_head(const AttentionArgs& a, int64_t t, int64_t head);

// One range of one KV head.
struct Range {
  const uint8_t *keys, *key_scales, *value_scales, *values;
  int64_t begin;  // absolute position of its first key
};

// Probabilities of R rows over a range, and the factors of their sums so far and of the range's own.
template <class P>
struct Softmax {
  alignas(64) P p[TILE_ROWS][PAGE];
  float old_scale[TILE_ROWS], new_scale[TILE_ROWS];
  float value_scale[TILE_ROWS];  // int8 alone: of the products with p
};

// Rare, and long: kept out of the tiles.
__attribute__((noinline)) inline void cap_scores(f32x16* s, float softcap) {
  for (int v = 0; v < RANGE_VECTORS; v++) s[v] = softcap * tanh(s[v] / softcap);
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
  RL_FOR (v, RANGE_VECTORS) s[v] *= a.scale;
  if (a.softcap > 0) {
    f32x16 capped[RANGE_VECTORS];
    RL_FOR (v, RANGE_VECTORS) capped[v] = s[v];
    cap_scores(capped, a.softcap);
    RL_FOR (v, RANGE_VECTORS) s[v] = capped[v];
  }
  RL_FOR (v, RANGE_VECTORS) {
    const i32x16 key = lane + v * LANES;
    if (row.slope != 0) s[v] += row.slope * to_f32(key + (int32_t)(begin - row.position));
    if (!whole) s[v] = select((key >= lo) & (key < hi), s[v], none);
    top = maximum(s[v], top);
  }
  return largest(top);
}

// New maxima of R records, which the range's `tops` join; changes[r] and changes[TILE_ROWS + r] are the
// factors of the record and of the range.
template <int R>
RL_INLINE void join_tops(QueryRow* const* rows, const float (&tops)[R], float (&changes)[LANES]) {
  static_assert(2 * TILE_ROWS <= LANES);
  RL_FOR (i, LANES) changes[i] = 0;
  RL_FOR (r, R) {
    float& top = *rows[r]->sums;
    const float merged = top > tops[r] ? top : tops[r];
    changes[r] = top - merged;
    changes[TILE_ROWS + r] = tops[r] - merged;
    top = merged;
  }
  store(changes, exp(load(changes)));
}

// Scores of R rows to probabilities relative to the range's own maxima; their maxima and weights join the
// rows' records. `F::probabilities` rounds a row's to what it multiplies values by.
template <class F, int R>
RL_INLINE void softmax_range(QueryRow* const* rows, f32x16 (&s)[R][RANGE_VECTORS], const float (&tops)[R],
                             const Range& range, Softmax<typename F::P>& out) {
  float changes[LANES];
  join_tops<R>(rows, tops, changes);
  RL_FOR (r, R) {
    RL_FOR (v, RANGE_VECTORS)
      s[r][v] = F::exponential(s[r][v] - tops[r]);  // exactly 0 where the score is -inf
    const f32x16 lanes = F::probabilities(s[r], range, out.p[r], out.value_scale[r]);
    float* weight = weight_of(rows[r]->sums);
    out.old_scale[r] = changes[r];
    out.new_scale[r] = changes[TILE_ROWS + r];
    store(weight, fma(lanes, splat(out.new_scale[r]), load(weight) * out.old_scale[r]));
  }
}

// Column sums of a range join R records.
template <int R, int V>
RL_INLINE void join_columns(QueryRow* const* rows, const f32x16 (&acc)[R][V], const float* old_scale,
                            const float* new_scale, int64_t column) {
  RL_FOR (r, R) {
    float* total = columns_of(rows[r]->sums) + column;
    RL_FOR (v, V) {
      const f32x16 old = load(total + v * LANES) * old_scale[r];
      store(total + v * LANES, fma(acc[r][v], splat(new_scale[r]), old));
    }
  }
}

// Calls tile(column, columns of its group, its vectors) for all groups of columns.
template <class Tile>
RL_INLINE void for_groups(int64_t padded_dim, const Tile& tile) {
  int64_t column = 0;
  for (; column + COLUMN_GROUP <= padded_dim; column += COLUMN_GROUP)
    tile.template run<GROUP_VECTORS>(column, COLUMN_GROUP);
  const int64_t left = padded_dim - column;
  if (left > 3 * LANES) return tile.template run<4>(column, left);
  if (left > 2 * LANES) return tile.template run<3>(column, left);
  if (left > LANES) return tile.template run<2>(column, left);
  if (left > 0) return tile.template run<1>(column, left);
}

}  // namespace ridgeline::RL_ISA
