// A pool of threads that run one function together, and the barrier they meet at.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace ridgeline {

// One flag per thread, each on its own line: a thread raises its flag and waits for all the others.
class Barrier {
 public:
  explicit Barrier(int threads);
  void wait(int thread);

  // The longest that a thread has waited beyond what balanced work explains, since this was last asked.
  std::chrono::nanoseconds take_lost();

 private:
  struct alignas(128) Flag {
    std::atomic<uint32_t> round{0};
    std::atomic<int64_t> lost_ns{0};
  };
  void wait_long(int thread, int other, uint32_t round);
  const int threads_;
  std::unique_ptr<Flag[]> flags_;
};

// Whether another process keeps one of our threads off its core. All others then wait for it, for
// milliseconds at a time, and one thread alone is faster: `crowded` asks for that for a while, longer each
// time in a row.
class Contention {
 public:
  bool crowded() const;
  void ran(std::chrono::nanoseconds took, std::chrono::nanoseconds lost);  // all threads together

 private:
  std::chrono::nanoseconds pause_{0};
  std::atomic<std::chrono::steady_clock::time_point> until_{};  // read by callers that do not hold the pool
};

// `run` may be called from one thread at a time; that caller is thread 0 of the pool.
class Pool {
 public:
  // Thread t runs on cpu `cpus[t]` only; none given: wherever the system puts it. The caller is bound while
  // it is in `run`, and then has its own affinity again. Throws std::invalid_argument below one thread and
  // for cpus of another number, std::system_error where the system starts no more or refuses a cpu.
  explicit Pool(int threads, std::vector<int> cpus = {});
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const { return threads_; }

  // What is counted up as work goes on: at each barrier of a step. May be memory that another process
  // watches.
  std::atomic<uint64_t>* progress = &own_progress_;
  Barrier& barrier() { return barrier_; }

  // Whether the caller had better do the next work alone.
  bool crowded() const { return contention_.crowded(); }

  // Calls work(thread) once on every thread, and returns when all have returned. The other threads then call
  // rest(thread, 0), rest(thread, 1), ... until that returns false or the next run begins, which is when
  // `rest` may go.
  using Rest = std::function<bool(int, int64_t)>;
  void run(const std::function<void(int)>& work, const Rest* rest = nullptr);

 private:
  int cpu(int thread) const { return cpus_.empty() ? -1 : cpus_[thread]; }
  void serve(int thread);
  void stop();
  uint32_t await(uint32_t seen);

  const int threads_;
  const std::vector<int> cpus_;
  Barrier barrier_;
  Contention contention_;
  const std::function<void(int)>* work_ = nullptr;  // null while stopping
  const Rest* rest_ = nullptr;
  std::atomic<uint32_t> round_{0};
  std::mutex mutex_, running_;
  std::condition_variable wake_;
  std::vector<std::thread> others_;
  std::atomic<uint64_t> own_progress_{0};
};

}  // namespace ridgeline
