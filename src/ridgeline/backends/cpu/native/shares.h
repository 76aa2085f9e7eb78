// Rows shared out between threads: each has its own, and who is done early takes of another's.
#pragma once

#include <atomic>
#include <memory>

#include "kernels.h"

namespace ridgeline {

// What is left of each thread's rows, on a line of its own. Its owner takes from the beginning and others
// from the far end, half of what is left at a time, but no fewer than 16: each piece passes the whole matrix.
class Shares {
 public:
  explicit Shares(int threads) : threads_(threads), slots_(new Slot[threads]) {}

  // Runs work(rows) until none of n rows is left to begin. All threads call this with the same n, and meet
  // before: program.cpp puts a barrier before every linear but the first.
  template <class Work>
  void run(int thread, int64_t n, const Work& work) {
    const uint64_t round = ++slots_[thread].round & (~uint64_t(0) >> 2 * BITS);
    for (int i = 0; i < threads_; i++)
      for (Span rows; (rows = take((thread + i) % threads_, i == 0, round, n)).begin < rows.end;) work(rows);
  }

 private:
  static constexpr int BITS = 22;  // of a row number
  static constexpr uint64_t MASK = (uint64_t(1) << BITS) - 1;
  static constexpr int64_t LEAST = 16;
  struct alignas(128) Slot {
    std::atomic<uint64_t> left{0};  // [round][begin][end]
    uint64_t round = 0;             // that its owner is in
  };

  Span take(int owner, bool own, uint64_t round, int64_t n) {
    std::atomic<uint64_t>& slot = slots_[owner].left;
    uint64_t seen = slot.load(std::memory_order_relaxed);
    for (;;) {
      Span left{(int64_t)(seen >> BITS & MASK), (int64_t)(seen & MASK)};
      if (seen >> 2 * BITS != round) left = share(n, owner, threads_);  // the first to come
      const int64_t rows = left.end - left.begin, half = rows / 2 > LEAST ? rows / 2 : LEAST;
      const int64_t count = half < rows ? half : rows, at = own ? left.begin + count : left.end - count;
      const Span taken = own ? Span{left.begin, at} : Span{at, left.end};
      const Span rest = own ? Span{at, left.end} : Span{left.begin, at};
      const uint64_t next = round << 2 * BITS | (uint64_t)rest.begin << BITS | (uint64_t)rest.end;
      if (slot.compare_exchange_weak(seen, next, std::memory_order_relaxed)) return taken;
    }
  }

  const int threads_;
  std::unique_ptr<Slot[]> slots_;
};

}  // namespace ridgeline
