#include "step.h"

#include <string.h>

#include <algorithm>
#include <chrono>

#include "check.h"
#include "count.h"
#include "rows.h"
#include "sample.h"

namespace ridgeline {
namespace {

int64_t scratch_needed(const Program& p) {
  int64_t bytes = 64;
  for (const State& s : p.states) bytes = std::max(bytes, AttentionScratch(s.n_kv_heads, s.head_dim).bytes());
  for (const Instr& i : p.instrs)
    if (strcmp(i.op->name, "sample") == 0)
      bytes = std::max(bytes, sample_scratch_bytes(i.operands[0].stop - i.operands[0].start));
  return (bytes + 127) / 128 * 128;
}

int64_t piece_bytes(const Program& p) {
  int64_t bytes = 64;
  for (const Instr& i : p.instrs)
    if (strcmp(i.op->name, "sample") == 0) {
      const Operand& logits = i.operands[0];
      const int64_t each = pieces_of(logits.stop - logits.start) * (int64_t)sizeof(Piece);
      bytes = std::max(bytes, p.buffers[logits.index].rows * each);
    }
  return bytes;
}

// Each thread copies in its own layers, so the order of copies holds and threads do not meet.
void run_copies(const Frame& f) {
  const int64_t n = f.size(AXIS_C);
  const Span layers = f.mine(f.program.layers);
  for (const State& s : f.program.states) {
    if (s.layer < layers.begin || s.layer >= layers.end) continue;
    const int32_t* copy = f.field_at<int32_t>(f.program.copies);
    for (int64_t c = 0; c < n; c++, copy += 4)
      if (copy[0] == s.group) copy_slots(f.pages(s), copy[1], copy[2], copy[3]);
  }
}

void hold_rows(const Frame& f) {
  const int32_t *want = f.field_at<int32_t>(f.program.want), *slot = f.field_at<int32_t>(f.program.hold_slot);
  const Buffer& kept = f.program.buffers[f.program.kept];
  const float* rows = (const float*)(f.arena + kept.offset);
  for (int64_t r = 0; r < f.size(AXIS_L); r++)
    if (want[r] & WANT_HOLD)
      memcpy(f.held + slot[r] * kept.cols, rows + r * kept.cols, (size_t)kept.cols * sizeof(float));
}

// Whether any row is sampled from: embeddings want their hidden rows alone.
bool samples(const Frame& f) {
  const int64_t rows = f.size(AXIS_L);
  const int32_t* want = f.field_at<int32_t>(f.program.want);
  return rows == 0 || std::any_of(want, want + rows, [](int32_t w) { return w & WANT_SAMPLE; });
}

constexpr int64_t SECTION_ROWS = 8;

// Between two steps the other threads read what the next one begins with: so much of it as the caller's work
// takes the time for, in chunks that keep a new step waiting for less than a microsecond.
constexpr int64_t AHEAD_BYTES = 16 << 20, AHEAD_CHUNK = 16 << 10;

struct Untimed {
  void waited(size_t) {}
  void worked(size_t) {}
};

struct Timed {
  using Clock = std::chrono::steady_clock;
  InstrTime* times;
  Clock::time_point last = Clock::now();

  void waited(size_t instr) { times[instr].wait += lap(); }
  void worked(size_t instr) { times[instr].work += lap(); }

  double lap() {
    const Clock::time_point before = last;
    last = Clock::now();
    return std::chrono::duration<double>(last - before).count();
  }
};

}  // namespace

Step::Step(Pool& pool, const Kernels& kernels, Program program, std::vector<const Weight*> weights,
           std::vector<Vector> vectors, uint8_t* kv, uint8_t* arena)
    : pool_(pool),
      kernels_(kernels),
      program_(std::move(program)),
      weights_(std::move(weights)),
      vectors_(std::move(vectors)),
      kv_(kv),
      arena_(arena),
      scratch_bytes_(scratch_needed(program_)),
      scratch_((size_t)(scratch_bytes_ * pool.threads())),
      held_((size_t)(program_.held_rows * program_.held_cols) * sizeof(float)),
      pieces_((size_t)piece_bytes(program_), false),
      shares_(pool.threads()),
      own_((size_t)(program_.arena_bytes * pool.threads()), false) {}

// Threads may still be reading ahead.
Step::~Step() {
  pool_.run([](int) {});
}

int64_t Step::kv_bytes(const Program& p) {
  return (p.pages + PAGE_RUN - 1) / PAGE_RUN * PAGE_RUN * p.layers * p.page_bytes + KV_SLACK_BYTES;
}

Frame Step::frame(const uint8_t* batch, int thread, bool alone) {
  return {program_,
          kernels_,
          weights_,
          vectors_,
          arena_,
          kv_,
          {0, 0},
          single(batch) && !alone ? own_.data() + thread * program_.arena_bytes : nullptr,
          (float*)held_.data(),
          batch,
          scratch_.data() + thread * scratch_bytes_,
          scratch_bytes_,
          (Piece*)pieces_.data(),
          alone ? lone_ : pool_.barrier(),
          shares_,
          thread,
          alone ? 1 : pool_.threads()};
}

// With one token and one row to sample from, threads cannot share rows.
bool Step::single(const uint8_t* batch) const {
  const int64_t* sizes = (const int64_t*)batch;
  return pool_.threads() > 1 && sizes[AXIS_T] == 1 && sizes[AXIS_L] <= 1;
}

void Step::check(const uint8_t* batch, int64_t bytes) {
  check_header(program_, batch, bytes);
  const Frame first = frame(batch, 0);
  if (program_.copies >= 0) check_copies(first);
  if (program_.kept >= 0) check_hold(first);
  for (const Instr& i : program_.instrs)
    if (i.check) i.op->check(i, first);
}

void Step::run(const uint8_t* batch, int64_t bytes) {
  check(batch, bytes);
  Untimed timer;
  if (pool_.crowded()) return run_thread(frame(batch, 0, true), timer);
  pool_.run([&](int thread) { run_thread(frame(batch, thread), timer); }, &rest_);
}

// Chunk n of those this thread reads of the first matrices; false where there are no more.
bool Step::read_ahead(int thread, int64_t n) const {
  int64_t at = (n * (pool_.threads() - 1) + thread - 1) * AHEAD_CHUNK;
  if (at >= AHEAD_BYTES) return false;
  for (const Instr& i : program_.instrs) {
    if (i.op->light) continue;
    for (const Operand& x : i.operands) {
      if (x.kind != Kind::weight) continue;
      const Weight& w = *weights_[x.index];
      if (at < w.bytes()) {
        kernels_.read(w.data + at, std::min(AHEAD_CHUNK, w.bytes() - at));
        return true;
      }
      at -= (w.bytes() + AHEAD_CHUNK - 1) / AHEAD_CHUNK * AHEAD_CHUNK;
    }
  }
  return false;
}

std::vector<InstrTime> Step::profile(const uint8_t* batch, int64_t bytes) {
  check(batch, bytes);
  const size_t entries = program_.instrs.size() + 1;
  // The other threads read the clock too, so that none is ahead for not doing so.
  std::vector<InstrTime> times(entries * (size_t)pool_.threads());
  pool_.run([&](int thread) {
    Timed timer{times.data() + (size_t)thread * entries};
    run_thread(frame(batch, thread), timer);
    pool_.barrier().wait(thread);
    timer.waited(entries - 1);
  });
  times.resize(entries);
  return times;
}

// Light instructions pass over a few rows at a time, which stay in cache from one to the next.
template <class Timer>
void Step::run_section(const Frame& f, size_t first, Timer& timer) const {
  const Instr* instrs = program_.instrs.data() + first;
  const Span rows = f.rows(instrs[0]);
  for (int64_t begin = rows.begin; begin < rows.end; begin += SECTION_ROWS) {
    Frame part = f;
    part.block = {begin, std::min(rows.end, begin + SECTION_ROWS)};
    for (int64_t k = 0; k < instrs[0].section; k++) {
      counting(&instrs[k], instrs[k].op->name);
      instrs[k].op->run(instrs[k], part);
      timer.worked(first + (size_t)k);
    }
  }
}

template <class Timer>
void Step::run_thread(const Frame& f, Timer& timer) const {
  if (program_.copies >= 0 && f.size(AXIS_C) > 0) {
    run_copies(f);
    f.barrier.wait(f.thread);
  }
  size_t end = program_.instrs.size();
  if ((size_t)program_.sample < end && !samples(f)) end = (size_t)program_.sample;
  for (size_t k = 0; k < end;) {
    const Instr& i = program_.instrs[k];
    if (f.own ? i.barrier_single : i.barrier) {
      f.barrier.wait(f.thread);
      if (f.thread == 0) pool_.progress->fetch_add(1, std::memory_order_relaxed);
    }
    timer.waited(k);
    if (!f.own && i.section > 1) {
      run_section(f, k, timer);
      k += (size_t)i.section;
      continue;
    }
    counting(&i, i.op->name);
    i.op->run(i, f);
    timer.worked(k++);
  }
  if (program_.kept >= 0) {
    f.barrier.wait(f.thread);
    if (f.thread == 0) hold_rows(f);
  }
}

}  // namespace ridgeline
