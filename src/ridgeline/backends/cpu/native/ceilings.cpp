#include "ceilings.h"

#include <string.h>

#include <algorithm>
#include <chrono>
#include <stdexcept>

namespace ridgeline {
namespace {

using Clock = std::chrono::steady_clock;

// Seconds from when all threads are there until all have done work(thread).
template <class Work>
double seconds_together(Pool& pool, Work work) {
  double seconds = 0;
  pool.run([&](int thread) {
    pool.barrier().wait(thread);
    const auto begin = Clock::now();
    work(thread);
    pool.barrier().wait(thread);
    if (thread == 0) seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  });
  return seconds;
}

// The best of several runs is taken: the others were disturbed. Short ones find quiet moments on a busy
// machine.
constexpr int PEAK_RUNS = 20, BARRIER_RUNS = 100;
constexpr int BARRIERS = 50;         // 4 to 15 us
constexpr int64_t MULTIPLY = 50000;  // rounds; 0.15 to 0.5 ms

}  // namespace

void touch(Pool& pool, HugeMemory& memory) {
  pool.run([&](int thread) {
    const Span own = share((int64_t)memory.bytes(), thread, pool.threads());
    memset(memory.data() + own.begin, 1, (size_t)(own.end - own.begin));
  });
}

double read_gb_s(Pool& pool, const Kernels& kernels, const HugeMemory& memory, int64_t bytes,
                 int64_t rounds) {
  if (bytes < 0 || bytes > (int64_t)memory.bytes() || rounds < 1)
    throw std::invalid_argument("more bytes to read than the memory has, or no rounds");
  const int64_t each = bytes / pool.threads() / 4096 * 4096;
  const double seconds = seconds_together(pool, [&](int thread) {
    const uint8_t* own = memory.data() + share((int64_t)memory.bytes(), thread, pool.threads()).begin;
    for (int64_t i = 0; i < rounds; i++) kernels.read(own, each);
  });
  return (double)(each * pool.threads() * rounds) / seconds / 1e9;
}

double peak_gops(Pool& pool, const Kernels& kernels, Arithmetic kind) {
  const int64_t ops = kernels.multiply(kind, 1) * MULTIPLY * pool.threads();
  double best = 0;
  for (int i = 0; ops > 0 && i < PEAK_RUNS; i++)
    best =
        std::max(best, (double)ops / seconds_together(pool, [&](int) { kernels.multiply(kind, MULTIPLY); }));
  return best / 1e9;
}

double barrier_ns(Pool& pool) {
  double best = 1e9;
  for (int i = 0; i < BARRIER_RUNS; i++)
    best = std::min(best, seconds_together(pool, [&](int thread) {
                      for (int n = 1; n < BARRIERS; n++) pool.barrier().wait(thread);
                    }));
  return best / BARRIERS * 1e9;
}

}  // namespace ridgeline
