// Attention over paged keys: append_kv stores the step's keys and values, attend serves the query rows.
//
// Rows are ordered request run, KV head, token, query head; threads cut this order by cost, anywhere, for a
// row's result does not depend on its neighbours. Rows of one KV head share passes over its keys.
#include "attention_tile.h"

namespace ridgeline::RL_ISA {
namespace {

RL_INLINE uint16_t to_bf16(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u)
    return (uint16_t)((bits >> 16) | 0x40u);  // a NaN must not round to inf
  return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

RL_INLINE void put(float* p, float x) {
  *p = x;
}

RL_INLINE void put(uint16_t* p, float x) {
  *p = to_bf16(x);
}

template <class T>
void append_row(const KVView& kv, int64_t slot, const float* k, const float* v) {
  const int64_t page = slot / PAGE, at = slot % PAGE, dim = kv.head_dim;
  for (int64_t h = 0; h < kv.n_kv_heads; h++, k += dim, v += dim) {
    T *keys = (T*)kv.keys(page, h) + at, *values = (T*)kv.values(page, h) + at * dim;
    for (int64_t d = 0; d < dim; d++) put(keys + d * PAGE, k[d]);
    for (int64_t d = 0; d < dim; d++) put(values + d, v[d]);
  }
}

RL_INLINE int64_t first_key(const AttentionArgs& a, int64_t t) {
  return a.window && a.kv_len[t] > a.window ? a.kv_len[t] - a.window : 0;
}

RL_INLINE int64_t end_key(const AttentionArgs& a, int64_t t) {
  return a.span && a.span[t] > a.kv_len[t] ? a.span[t] : a.kv_len[t];
}

RL_INLINE int64_t row_cost(const AttentionArgs& a, int64_t t) {
  return (end_key(a, t) + PAGE - 1) / PAGE - first_key(a, t) / PAGE + 1;
}

template <class T, int R>
RL_INLINE void tile(const AttentionArgs& a, QueryRow* const* rows, const Range& range) {
  Scores scores;
  score_tile<T, R>(a, rows, range, scores);
  bool same_start = true;
  for (int r = 1; r < R; r++) {
    const bool both_before = rows[r]->first <= range.begin && rows[0]->first <= range.begin;
    same_start &= both_before || rows[r]->first == rows[0]->first;
  }
  if (same_start) return value_tile<T, R>(rows, scores, 0, range, a.kv.head_dim);
  for (int r = 0; r < R; r++) value_tile<T, 1>(rows + r, scores, r, range, a.kv.head_dim);
}

// Runs the tile of `count` rows (1 <= count <= R).
template <class T, int R = TILE_ROWS>
void run_tile(const AttentionArgs& a, QueryRow* const* rows, int64_t count, const Range& range) {
  if (count == R) return tile<T, R>(a, rows, range);
  if constexpr (R > 1) run_tile<T, R - 1>(a, rows, count, range);
}

// All ranges of one KV head, in ascending order, for up to BLOCK_ROWS rows of one request.
template <class T>
void attend_rows(const AttentionArgs& a, QueryRow* rows, int64_t count, int64_t head, const int32_t* pages) {
  int64_t begin = rows[0].first, end = rows[0].end;
  for (int64_t i = 1; i < count; i++) {
    begin = rows[i].first < begin ? rows[i].first : begin;
    end = rows[i].end > end ? rows[i].end : end;
  }
  QueryRow* active[BLOCK_ROWS];
  for (int64_t at = begin / PAGE * PAGE; at < end; at += PAGE) {
    int64_t n = 0;
    for (int64_t i = 0; i < count; i++)
      if (rows[i].first < at + PAGE && rows[i].end > at) active[n++] = rows + i;
    const int64_t page = pages[at / PAGE], tiles = (n + TILE_ROWS - 1) / TILE_ROWS;
    const Range range{a.kv.keys(page, head), a.kv.values(page, head), at};
    for (int64_t i = 0; i < tiles; i++) {
      const int64_t from = n * i / tiles;
      run_tile<T>(a, active + from, n * (i + 1) / tiles - from, range);
    }
  }
}

// Divides by the weight, after the sink (a key without value) has joined it.
void finish(const QueryRow& row, int64_t head_dim) {
  const float top = row.top > row.sink ? row.top : row.sink;
  float scales[LANES] = {row.top - top, row.sink - top};
  store(scales, exp(load(scales)));
  const float scale = scales[0] / (row.weight * scales[0] + scales[1]);
  for (int64_t c = 0; c < head_dim; c += LANES) {
    const f32x16 out = load(row.total + c) * scale;
    if (head_dim - c >= LANES)
      store(row.out + c, out);
    else
      store_part(row.out + c, out, head_dim - c);
  }
}

// Rows [from, to) of (tokens from t0) x (query heads of `head`).
void attend_block(const AttentionArgs& a, float* scratch, int64_t t0, int64_t head, int64_t from,
                  int64_t to) {
  const int64_t dim = a.kv.head_dim, group = a.n_heads / a.kv.n_kv_heads,
                padded = (dim + LANES - 1) / LANES * LANES;
  const float none = -__builtin_inff();
  QueryRow rows[BLOCK_ROWS];
  memset(scratch, 0, (size_t)((to - from) * padded) * sizeof(float));
  for (int64_t i = from; i < to; i++) {
    const int64_t t = t0 + i / group, h = head * group + i % group;
    rows[i - from] = {a.q.row(t) + h * dim,
                      scratch + (i - from) * padded,
                      a.out.row(t) + h * dim,
                      none,
                      0,
                      a.slopes ? a.slopes[h] : 0,
                      first_key(a, t),
                      end_key(a, t),
                      a.kv_len[t] - 1,
                      a.sinks ? a.sinks[h] : none};
  }
  const int32_t* pages = a.page_table + a.request[t0] * a.pages_per_request;
  if (a.kv.format == KVFormat::f32)
    attend_rows<float>(a, rows, to - from, head, pages);
  else
    attend_rows<uint16_t>(a, rows, to - from, head, pages);
  for (int64_t i = 0; i < to - from; i++) finish(rows[i], dim);
}

// The part of tokens [t0, t1) of one request and one KV head that costs [mine.begin, mine.end) of the step,
// `at` being the cost before it.
void attend_share(const AttentionArgs& a, float* scratch, int64_t t0, int64_t t1, int64_t head, int64_t at,
                  Span mine) {
  const int64_t group = a.n_heads / a.kv.n_kv_heads, count = (t1 - t0) * group;
  int64_t from = -1, to = -1;
  for (int64_t i = 0; i < count && at < mine.end; i++) {
    if (at >= mine.begin) {
      if (from < 0) from = i;
      to = i + 1;
    }
    at += row_cost(a, t0 + i / group);
  }
  const int64_t n = to - from, blocks = (n + BLOCK_ROWS - 1) / BLOCK_ROWS;
  if (from < 0) return;
  for (int64_t b = 0; b < blocks; b++)
    attend_block(a, scratch, t0, head, from + n * b / blocks, from + n * (b + 1) / blocks);
}

}  // namespace

void append_kv(const AttentionArgs& a, Span rows) {
  for (int64_t t = rows.begin; t < rows.end; t++) {
    if (a.kv.format == KVFormat::f32)
      append_row<float>(a.kv, a.kv_slot[t], a.k.row(t), a.v.row(t));
    else
      append_row<uint16_t>(a.kv, a.kv_slot[t], a.k.row(t), a.v.row(t));
  }
}

void attend(const AttentionArgs& a, uint8_t* scratch, int part, int parts) {
  const int64_t tokens = a.q.rows, group = a.n_heads / a.kv.n_kv_heads;
  int64_t total = 0;
  for (int64_t t = 0; t < tokens; t++) total += row_cost(a, t) * a.n_heads;
  const Span mine = share(total, part, parts);
  int64_t at = 0;
  for (int64_t t0 = 0, t1; t0 < tokens; t0 = t1) {
    int64_t cost = 0;
    for (t1 = t0; t1 < tokens && a.request[t1] == a.request[t0]; t1++) cost += row_cost(a, t1) * group;
    for (int64_t h = 0; h < a.kv.n_kv_heads; h++, at += cost)
      if (at < mine.end && at + cost > mine.begin) attend_share(a, (float*)scratch, t0, t1, h, at, mine);
  }
}

}  // namespace ridgeline::RL_ISA
