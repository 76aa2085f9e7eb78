#include "pool.h"

#include <errno.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace ridgeline {

static inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Some 15 us, several times a balanced wait. Beyond it the other thread has lost its core, perhaps to another
// pool that spins just as we do: give way, or both pools lose a time slice at every barrier.
constexpr int BARRIER_SPINS = 1000;
constexpr auto PARK_AFTER = std::chrono::microseconds(50);

// A time slice is some milliseconds; waking a parked thread takes less than a tenth of one.
constexpr auto LOST_MUCH = std::chrono::microseconds(500);
constexpr auto PAUSE_LEAST = std::chrono::milliseconds(20), PAUSE_MOST = std::chrono::milliseconds(320);

Barrier::Barrier(int threads) : threads_(threads), flags_(new Flag[threads]) {}

void Barrier::wait(int thread) {
  const uint32_t round = flags_[thread].round.load(std::memory_order_relaxed) + 1;
  flags_[thread].round.store(round, std::memory_order_release);
  for (int other = 0; other < threads_; other++)
    for (int spins = 0; (int32_t)(flags_[other].round.load(std::memory_order_acquire) - round) < 0; spins++) {
      if (spins == BARRIER_SPINS) return wait_long(thread, other, round);
      pause();
    }
}

void Barrier::wait_long(int thread, int other, uint32_t round) {
  const auto begin = std::chrono::steady_clock::now();
  for (; other < threads_; other++)
    while ((int32_t)(flags_[other].round.load(std::memory_order_acquire) - round) < 0)
      std::this_thread::yield();
  const std::chrono::nanoseconds lost = std::chrono::steady_clock::now() - begin;
  flags_[thread].lost_ns.fetch_add(lost.count(), std::memory_order_relaxed);
}

std::chrono::nanoseconds Barrier::take_lost() {
  int64_t most = 0;
  for (int t = 0; t < threads_; t++)
    most = std::max(most, flags_[t].lost_ns.exchange(0, std::memory_order_relaxed));
  return std::chrono::nanoseconds(most);
}

bool Contention::crowded() const {
  return std::chrono::steady_clock::now() < until_.load(std::memory_order_relaxed);
}

void Contention::ran(std::chrono::nanoseconds took, std::chrono::nanoseconds lost) {
  if (lost < LOST_MUCH || lost < took / 4) {
    pause_ /= 2;
    return;
  }
  pause_ = std::min<std::chrono::nanoseconds>(std::max<std::chrono::nanoseconds>(2 * pause_, PAUSE_LEAST),
                                              PAUSE_MOST);
  until_.store(std::chrono::steady_clock::now() + pause_, std::memory_order_relaxed);
}

#if defined(__linux__)
typedef cpu_set_t Cpus;

static Cpus only(int cpu) {
  Cpus one;
  CPU_ZERO(&one);
  if (cpu < CPU_SETSIZE) CPU_SET(cpu, &one);  // none at all is refused
  return one;
}

static int allowed(Cpus& now) {
  CPU_ZERO(&now);
  return pthread_getaffinity_np(pthread_self(), sizeof now, &now);
}

static int allow(const Cpus& cpus) {
  return pthread_setaffinity_np(pthread_self(), sizeof cpus, &cpus);
}
#else
struct Cpus {};

static Cpus only(int) {
  return {};
}

static int allowed(Cpus&) {
  return ENOTSUP;
}

static int allow(const Cpus&) {
  return ENOTSUP;
}
#endif

// Binds whoever makes it to a cpu while it lives; -1: to none.
struct Binding {
  const bool binds;
  Cpus before;
  int error = 0;  // of the system, whose thread then stays as it was

  explicit Binding(int cpu) : binds(cpu >= 0) {
    if (binds) error = allowed(before);
    if (binds && error == 0) error = allow(only(cpu));
  }
  ~Binding() {
    if (binds && error == 0) allow(before);
  }
  Binding(const Binding&) = delete;
  Binding& operator=(const Binding&) = delete;
};

static int checked(int threads, const std::vector<int>& cpus) {
  if (threads < 1) throw std::invalid_argument("a pool has at least one thread");
  if (!cpus.empty() && cpus.size() != (size_t)threads)
    throw std::invalid_argument("a pool that is bound has one cpu for each thread");
  for (int cpu : cpus)
    if (cpu < 0) throw std::invalid_argument("cpus are numbered from 0");
  return threads;
}

Pool::Pool(int threads, std::vector<int> cpus)
    : threads_(checked(threads, cpus)), cpus_(std::move(cpus)), barrier_(threads) {
  try {
    for (int t = 0; t < threads; t++) {
      const Binding here(cpu(t));  // a thread inherits the affinity of the one that starts it
      if (here.error != 0)
        throw std::system_error(here.error, std::generic_category(), "cpu " + std::to_string(cpu(t)));
      if (t > 0) others_.emplace_back([this, t] { serve(t); });
    }
  } catch (...) {
    stop();  // a thread that is still joinable when destroyed ends the process
    throw;
  }
}

Pool::~Pool() {
  stop();
}

void Pool::stop() {
  work_ = nullptr;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    round_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_all();
  for (auto& thread : others_) thread.join();
}

void Pool::run(const std::function<void(int)>& work, const Rest* rest) {
  std::lock_guard<std::mutex> alone(running_);
  const Binding here(cpu(0));  // a cpu that has left our cpuset by now is no reason to stop
  work_ = &work;
  rest_ = rest;
  if (threads_ > 1) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      round_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
  }
  const auto begin = std::chrono::steady_clock::now();
  work(0);
  barrier_.wait(0);
  contention_.ran(std::chrono::steady_clock::now() - begin, barrier_.take_lost());
}

uint32_t Pool::await(uint32_t seen) {
  const auto park_at = std::chrono::steady_clock::now() + PARK_AFTER;
  uint32_t round;
  while ((round = round_.load(std::memory_order_acquire)) == seen) {
    if (std::chrono::steady_clock::now() > park_at) {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return round_.load(std::memory_order_acquire) != seen; });
    }
    pause();
  }
  return round;
}

void Pool::serve(int thread) {
  for (uint32_t seen = 0;;) {
    seen = await(seen);
    const auto* work = work_;
    const Rest* rest = rest_;
    if (work == nullptr) return;
    (*work)(thread);
    barrier_.wait(thread);
    for (int64_t n = 0; rest && round_.load(std::memory_order_acquire) == seen && (*rest)(thread, n); n++) {
    }
  }
}

}  // namespace ridgeline
