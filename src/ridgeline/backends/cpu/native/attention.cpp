// Attention over paged keys: how its work is shared out, and how rows cut between threads are put together.
//
// Tokens of one request make a run. A run of few rows is cut into units of a span and a KV head; one of many
// into rows, 48 of one head at a time. Threads take equal costs of this order, cut anywhere: bits do not
// change.
#include "attention_pass.h"

namespace ridgeline::RL_ISA {
namespace {

constexpr int64_t LEAST_COST = 5;  // of a range: reading it takes as long as multiplying so many rows

// Tokens [begin, end) of one request that have spans of equal length.
struct Run {
  int64_t begin, end;
  int64_t first, last, span;  // key ranges [first, last); ranges of a span
  int64_t rows;               // of one KV head
  int64_t cost;
  bool wide;  // cut into units rather than rows
};

RL_INLINE int64_t ranges_of(const AttentionArgs& a, int64_t t) {
  return (end_key(a, t) + PAGE - 1) / PAGE - first_key(a, t) / PAGE;
}

RL_INLINE int64_t span_of(const AttentionArgs& a, int64_t t) {
  const int64_t ranges = ranges_of(a, t);
  int64_t span = 1;
  while (ranges > span * MOST_SPANS) span *= 2;
  return span;
}

Run run_at(const AttentionArgs& a, int64_t t) {
  const int64_t group = a.n_heads / a.kv.n_kv_heads;
  Run run{t, t, first_key(a, t) / PAGE, 0, span_of(a, t), 0, 0, false};
  int64_t ranges = 0;
  for (; t < a.q.rows && a.request[t] == a.request[run.begin] && span_of(a, t) == run.span; t++) {
    const int64_t first = first_key(a, t) / PAGE, last = (end_key(a, t) + PAGE - 1) / PAGE;
    run.first = first < run.first ? first : run.first;
    run.last = last > run.last ? last : run.last;
    ranges += last - first;
  }
  run.end = t;
  run.rows = (t - run.begin) * group;
  run.wide = run.rows <= WIDE_ROWS;
  run.cost =
      run.wide ? (run.last - run.first) * (run.rows > LEAST_COST ? run.rows : LEAST_COST) : ranges * group;
  run.cost *= a.kv.n_kv_heads;
  return run;
}

Pass wide_pass(const AttentionArgs& a, const Run& run) {
  Pass p{run.begin, 0, 0, a.kv.n_kv_heads, run.rows, run.first, run.last, run.span, {}};
  p.units = {0, p.spans() * p.heads};
  return p;
}

// Where the total cost is cut between threads.
struct Cuts {
  int64_t total;
  int parts;

  int64_t border(int part) const { return total * part / parts; }

  // Units of a wide pass, which begins after cost `at`, whose middle lies before a border.
  int64_t units_before(const Run& run, const Pass& all, int64_t at, int part) const {
    int64_t cost = border(part) - at, units = 0;
    if (cost <= 0) return 0;
    if (cost >= run.cost) return all.units.end;
    const int64_t range_cost = run.cost / (all.heads * (run.last - run.first));
    for (int64_t s = 0; s < all.spans(); s++, units += all.heads) {
      const int64_t unit = (all.range_of(s + 1) - all.range_of(s)) * range_cost;
      if (cost < unit * all.heads) return units + (cost + unit / 2) / unit;
      cost -= unit * all.heads;
    }
    return units;
  }

  Span units(const Run& run, const Pass& all, int64_t at, int part) const {
    return {units_before(run, all, at, part), units_before(run, all, at, part + 1)};
  }

  bool inside(const Run& run, const Pass& all, int64_t at) const {
    for (int part = 1; part < parts; part++) {
      if (border(part) <= at || border(part) >= at + run.cost) continue;
      const int64_t units = units_before(run, all, at, part);
      if (units > 0 && units < all.units.end) return true;
    }
    return false;
  }
};

Cuts cut(const AttentionArgs& a, int parts) {
  int64_t total = 0;
  for (int64_t t = 0; t < a.q.rows;) {
    const Run run = run_at(a, t);
    total += run.cost;
    t = run.end;
  }
  return {total, parts};
}

void attend_pass(const AttentionArgs& a, const Workspace& w, const Pass& p) {
  switch (a.kv.format) {
    case KVFormat::f32:
      return run_pass<F32Pages>(a, w, p);
    case KVFormat::bf16:
      return run_pass<BF16Pages>(a, w, p);
    case KVFormat::int8:
      return run_pass<Int8Pages>(a, w, p);
  }
}

// Rows [from, to) of one KV head of a run.
void attend_block(const AttentionArgs& a, const Workspace& w, const Run& run, int64_t head, int64_t from,
                  int64_t to) {
  const int64_t group = a.n_heads / a.kv.n_kv_heads;
  Pass p{run.begin, from, head, 1, to - from, run.last, 0, run.span, {}};
  for (int64_t t = run.begin + from / group; t <= run.begin + (to - 1) / group; t++) {
    const int64_t first = first_key(a, t) / PAGE, last = (end_key(a, t) + PAGE - 1) / PAGE;
    p.first = first < p.first ? first : p.first;
    p.last = last > p.last ? last : p.last;
  }
  p.units = {0, p.spans()};
  attend_pass(a, w, p);
}

// The rows of a run whose cost begins in `mine`, `at` being the cost before the run.
void attend_rows(const AttentionArgs& a, const Workspace& w, const Run& run, int64_t at, Span mine) {
  const int64_t group = a.n_heads / a.kv.n_kv_heads, head_cost = run.cost / a.kv.n_kv_heads;
  for (int64_t head = 0; head < a.kv.n_kv_heads; head++, at += head_cost) {
    if (at >= mine.end || at + head_cost <= mine.begin) continue;
    int64_t from = -1, to = -1, cost = at;
    for (int64_t i = 0; i < run.rows && cost < mine.end; i++) {
      if (cost >= mine.begin) {
        if (from < 0) from = i;
        to = i + 1;
      }
      cost += ranges_of(a, run.begin + i / group);
    }
    const int64_t n = to - from, blocks = (n + BLOCK_ROWS - 1) / BLOCK_ROWS;
    if (from < 0) continue;
    for (int64_t b = 0; b < blocks; b++)
      attend_block(a, w, run, head, from + n * b / blocks, from + n * (b + 1) / blocks);
  }
}

// This thread's share of the rows of a run that was cut: merges what the parts have left of them.
void merge_run(const AttentionArgs& a, const Team& team, const Run& run, const Cuts& cuts, int64_t at) {
  const Workspace w(a, team.scratch + team.part * team.stride);
  const Pass all = wide_pass(a, run);
  const int64_t n = all.heads * all.rows, first_span = run.first / run.span;
  const Span mine = share(n, team.part, team.parts);
  set_rows(a, w, all);
  for (int64_t i = mine.begin; i < mine.end; i++) {
    const QueryRow& row = w.rows[i];
    float* record = w.spans + i * w.record;
    clear(record, w.record);
    const int64_t h = i / all.rows, own_first = row.first / PAGE / run.span - first_span,
                  own_end = (row.end - 1) / PAGE / run.span - first_span + 1;
    for (int part = 0; part < team.parts; part++) {
      const Span units = cuts.units(run, all, at, part);
      const int64_t begin = all.spans_before(units.begin, h), end = all.spans_before(units.end, h);
      const int64_t from = begin > own_first ? begin : own_first, to = end < own_end ? end : own_end;
      if (from >= to) continue;
      const Workspace theirs(a, team.scratch + part * team.stride);
      if (units.begin == 0)
        merge(record, theirs.records + i * w.record, w.record);
      else
        for (int64_t s = from; s < to; s++)
          merge(record, theirs.parts + ((s - units.begin / all.heads) * n + i) * w.record, w.record);
    }
    finish(row, record, a.kv.head_dim);
  }
}

}  // namespace

// Returns whether rows were cut between threads, the same on all of them.
bool attend(const AttentionArgs& a, const Team& team) {
  const Workspace w(a, team.scratch + team.part * team.stride);
  const Cuts cuts = cut(a, team.parts);
  const Span mine{cuts.border(team.part), cuts.border(team.part + 1)};
  bool any = false;
  for (int64_t t = 0, at = 0; t < a.q.rows;) {
    const Run run = run_at(a, t);
    if (run.wide) {
      Pass p = wide_pass(a, run);
      any = any || cuts.inside(run, p, at);
      p.units = cuts.units(run, p, at, team.part);
      if (p.units.begin < p.units.end) attend_pass(a, w, p);
    } else if (at < mine.end && at + run.cost > mine.begin) {
      attend_rows(a, w, run, at, mine);
    }
    at += run.cost;
    t = run.end;
  }
  return any;
}

void merge_parts(const AttentionArgs& a, const Team& team) {
  const Cuts cuts = cut(a, team.parts);
  for (int64_t t = 0, at = 0; t < a.q.rows;) {
    const Run run = run_at(a, t);
    if (run.wide && cuts.inside(run, wide_pass(a, run), at)) merge_run(a, team, run, cuts, at);
    at += run.cost;
    t = run.end;
  }
}

}  // namespace ridgeline::RL_ISA
