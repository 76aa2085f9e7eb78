// A pass over key ranges of one request, for rows of one or of several KV heads.
//
// A row's keys are cut in ranges of 64, and these in spans of a power of two ranges, both by absolute
// position: a span's ranges are merged in ascending order, and so are the spans. Spans may thus be computed
// apart.
#pragma once

#include "attention_bf16.h"
#include "attention_f32.h"
#include "attention_i8.h"
#include "count.h"

namespace ridgeline::RL_ISA {

// The memory of one call on one thread. Row i's records are i records behind `records` and `spans`.
struct Workspace {
  QueryRow* rows;
  uint8_t* queries;
  float *records, *spans, *parts;
  int64_t query_bytes, record;  // from row to row, the latter in floats

  Workspace(const AttentionArgs& a, uint8_t* scratch) {
    static_assert(sizeof(QueryRow) <= AttentionScratch::ROW_BYTES);
    const AttentionScratch at(a.kv.n_kv_heads, a.kv.head_dim);
    rows = (QueryRow*)scratch;
    queries = scratch + at.queries();
    records = (float*)(scratch + at.records());
    spans = (float*)(scratch + at.spans());
    parts = (float*)(scratch + at.parts());
    query_bytes = at.query_bytes;
    record = at.record_bytes / 4;
  }
};

// Units [span][head] of a pass, and which of them it computes. Beginning after unit 0, it keeps spans apart:
// row i's in parts + ((span - kept) * rows + i) records.
struct Pass {
  int64_t token, from;        // a head's row i is query head (from + i) % group of token + (from + i) / group
  int64_t head, heads, rows;  // KV heads; rows of each
  int64_t first, last, span;  // key ranges [first, last); ranges of a span
  Span units;

  int64_t spans() const { return (last - 1) / span - first / span + 1; }
  bool whole() const { return units.begin == 0 && units.end == spans() * heads; }
  bool apart() const { return units.begin > 0; }
  int64_t kept() const { return units.begin / heads; }

  // Spans of head h before a unit.
  int64_t spans_before(int64_t unit, int64_t h) const { return unit / heads + (h < unit % heads); }

  // The first range of a span.
  int64_t range_of(int64_t at) const {
    const int64_t r = (first / span + at) * span;
    return r < first ? first : r > last ? last : r;
  }
};

// Where a pass is cut before a unit: by head, the first range behind the cut.
struct Edge {
  int64_t split, before,
      after;  // heads below `split` are cut before range `before`, the others before `after`

  Edge(const Pass& p, int64_t unit)
      : split(unit % p.heads), before(p.range_of(unit / p.heads + 1)), after(p.range_of(unit / p.heads)) {}
  int64_t range(int64_t head) const { return head < split ? before : after; }
};

RL_INLINE int64_t first_key(const AttentionArgs& a, int64_t t) {
  return a.window && a.kv_len[t] > a.window ? a.kv_len[t] - a.window : 0;
}

RL_INLINE int64_t end_key(const AttentionArgs& a, int64_t t) {
  return a.span && a.span[t] > a.kv_len[t] ? a.span[t] : a.kv_len[t];
}

RL_INLINE void clear(float* record, int64_t floats) {
  for (int64_t i = 0; i < floats; i += LANES) store(record + i, f32x16{});
  *record = -__builtin_inff();
}

// Merges the record `next` into `record`.
inline void merge(float* record, const float* next, int64_t floats) {
  const float top = *record > *next ? *record : *next;
  const f32x16 old = exp(splat(*record - top)), added = exp(splat(*next - top));
  *record = top;
  for (int64_t i = LANES; i < floats; i += LANES)
    store(record + i, fma(load(next + i), added, load(record + i) * old));
}

// Divides by the weight, after the sink (a key without value) has joined it.
inline void finish(const QueryRow& row, const float* record, int64_t head_dim) {
  const float top = *record > row.sink ? *record : row.sink;
  const f32x16 old = exp(splat(*record - top)), sink = exp(splat(row.sink - top));
  const f32x16 scale = old / (sum(load(record + LANES)) * old + sink);
  const float* columns = record + RECORD_HEAD;
  count(Counted::acts, head_dim * 4);
  for (int64_t c = 0; c < head_dim; c += LANES) {
    const f32x16 out = load(columns + c) * scale;
    if (head_dim - c >= LANES)
      store(row.out + c, out);
    else
      store_part(row.out + c, out, head_dim - c);
  }
}

inline void set_rows(const AttentionArgs& a, const Workspace& w, const Pass& p) {
  const int64_t dim = a.kv.head_dim, group = a.n_heads / a.kv.n_kv_heads, from = p.from % group;
  QueryRow* row = w.rows;
  for (int64_t h = 0; h < p.heads; h++)
    for (int64_t i = 0, t = p.token + p.from / group, g = from; i < p.rows; i++, row++) {
      const int64_t at = row - w.rows, head = (p.head + h) * group + g;
      row->record = w.records + at * w.record;
      row->parts = w.parts + at * w.record;
      row->input = a.q.row(t) + head * dim;
      row->out = a.out.row(t) + head * dim;
      row->slope = a.slopes ? a.slopes[head] : 0;
      row->sink = a.sinks ? a.sinks[head] : -__builtin_inff();
      row->first = first_key(a, t);
      row->end = end_key(a, t);
      row->position = a.kv_len[t] - 1;
      if (a.slopes) count_once(Counted::weights, a.slopes + head, 4);
      if (a.sinks) count_once(Counted::weights, a.sinks + head, 4);
      if (++g == group) g = 0, t++;
    }
}

template <class F>
void set_queries(const AttentionArgs& a, const Workspace& w, const Pass& p) {
  for (int64_t i = 0; i < p.heads * p.rows; i++) {
    count_once(Counted::acts, w.rows[i].input, a.kv.head_dim * 4);
    F::prepare(w.rows[i], a.kv.head_dim, w.queries + i * w.query_bytes);
  }
}

// The beginning of a block, while arithmetic has nothing to load: the memory's prefetchers go on from there.
// More of it disturbs them.
RL_INLINE void fetch(const uint8_t* block) {
  RL_FOR (i, 8) __builtin_prefetch(block + 64 * i, 0, 3);
}

template <class F, int R>
RL_INLINE void tile(const AttentionArgs& a, QueryRow* const* rows, const Range& range) {
  Softmax<typename F::P> softmax;
  f32x16 s[R][RANGE_VECTORS];
  float tops[R];
  F::template scores<R>(rows, range, a.kv.head_dim, s);
  fetch(range.values);
  RL_FOR (r, R) tops[r] = finish_scores(a, *rows[r], s[r], range.begin);
  softmax_range<F, R>(rows, s, tops, range, softmax);
  F::template values<R>(rows, softmax, range, a.kv.padded_dim());
  fetch(range.keys + 2 * a.kv.block_bytes());  // the next head's
}

// Runs the tile of `count` rows (1 <= count <= R).
template <class F, int R = TILE_ROWS>
void run_tile(const AttentionArgs& a, QueryRow* const* rows, int64_t count, const Range& range) {
  if (count == R) return tile<F, R>(a, rows, range);
  if constexpr (R > 1) run_tile<F, R - 1>(a, rows, count, range);
}

// Gives the row, which sees range r, its record for the range's span. `begin` is the pass's first range.
RL_INLINE void open_span(const Workspace& w, const Pass& p, QueryRow& row, int64_t r, int64_t begin) {
  const int64_t own = row.first / PAGE, at = &row - w.rows;
  const bool first = r == (own > begin ? own : begin);
  if (!first && (r & (p.span - 1))) return;
  if (p.apart()) {
    const int64_t span = r / p.span - p.first / p.span - p.kept();
    row.sums = row.parts + span * p.heads * p.rows * w.record;
  } else {
    row.sums = first || p.span == 1 ? row.record : w.spans + at * w.record;
    if (!first && p.span == 1) return;  // a span of one range is merged right away
  }
  clear(row.sums, w.record);
}

RL_INLINE void close_span(const Workspace& w, const Pass& p, QueryRow& row, int64_t r, int64_t end) {
  const int64_t own = (row.end + PAGE - 1) / PAGE, next = r + 1;
  if (p.apart() || row.sums == row.record) return;
  if ((next & (p.span - 1)) == 0 || next == (own < end ? own : end)) merge(row.record, row.sums, w.record);
}

// One range of head h, of which the pass has ranges [begin, end).
template <class F>
void run_range(const AttentionArgs& a, const Workspace& w, const Pass& p, int64_t h, int64_t r, Span ranges) {
  const int64_t at = r * PAGE, head = p.head + h;
  QueryRow* active[BLOCK_ROWS];
  int64_t n = 0;
  for (QueryRow* row = w.rows + h * p.rows; row < w.rows + (h + 1) * p.rows; row++) {
    if (row->first >= at + PAGE || row->end <= at) continue;
    open_span(w, p, *row, r, ranges.begin);
    active[n++] = row;
  }
  const int64_t page = a.page_table[a.request[p.token] * a.pages_per_request + r];
  const Range range{a.kv.keys(page, head), a.kv.key_scales(page, head), a.kv.value_scales(page, head),
                    a.kv.values(page, head), at};
  for (int64_t i = 0; i < n; i++) {
    const int64_t from = active[i]->first > at ? active[i]->first - at : 0, left = active[i]->end - at,
                  to = left < PAGE ? left : PAGE;
    count_keys(range.keys, from, to, 2 * a.kv.key_bytes());
    count(Counted::macs, 2 * (to - from) * a.kv.head_dim);
  }
  const int64_t tiles = (n + TILE_ROWS - 1) / TILE_ROWS;
  for (int64_t i = 0; i < tiles; i++) {
    const int64_t from = n * i / tiles;
    run_tile<F>(a, active + from, n * (i + 1) / tiles - from, range);
  }
  for (int64_t i = 0; i < n; i++) close_span(w, p, *active[i], r, ranges.end);
}

// All heads of a range before the next range: pages are read in the order of their addresses.
template <class F>
void run_pass(const AttentionArgs& a, const Workspace& w, const Pass& p) {
  set_rows(a, w, p);
  set_queries<F>(a, w, p);
  const Edge from(p, p.units.begin), to(p, p.units.end);
  const auto ranges_of = [&](int64_t h) { return Span{from.range(h), to.range(h)}; };
  const int64_t present = (a.kv_len[p.token] - 1) / PAGE;
  for (int64_t h = 0; a.appends && h < p.heads; h++)
    if (present >= ranges_of(h).begin && present < ranges_of(h).end) append_head(a, p.token, p.head + h);
  const int64_t begin = ranges_of(p.heads).begin, end = ranges_of(0).end;
  for (int64_t r = begin; r < end; r++)
    for (int64_t h = 0; h < p.heads; h++) {
      const Span ranges = ranges_of(h);
      if (r >= ranges.begin && r < ranges.end) run_range<F>(a, w, p, h, r, ranges);
    }
  if (!p.whole()) return;
  for (int64_t i = 0; i < p.heads * p.rows; i++) finish(w.rows[i], w.rows[i].record, a.kv.head_dim);
}

}  // namespace ridgeline::RL_ISA
