// A compiled step: a decoded program, its weights, its KV pool and arena; `run` executes one batch.
#pragma once

#include "frame.h"

namespace ridgeline {

// Seconds a thread waited for the others before an instruction, and worked on it.
struct InstrTime {
  double wait, work;
};

class Step {
 public:
  // Weights, vectors, kv (with 64 bytes to spare) and arena outlive the step. Throws std::invalid_argument.
  Step(Pool& pool, const Kernels& kernels, Program program, std::vector<const Weight*> weights,
       std::vector<Vector> vectors, uint8_t* kv, uint8_t* arena);
  ~Step();

  // Copies, then the instructions, then held rows. Results stay in the arena. Allocates nothing.
  void run(const uint8_t* batch, int64_t bytes);

  // The same, timed on thread 0: an entry per instruction, and one for the end, where it only waits.
  std::vector<InstrTime> profile(const uint8_t* batch, int64_t bytes);

  static int64_t kv_bytes(const Program& p);

 private:
  Frame frame(const uint8_t* batch, int thread, bool alone = false);
  void check(const uint8_t* batch, int64_t bytes);
  template <class Timer>
  void run_thread(const Frame& f, Timer& timer) const;
  template <class Timer>
  void run_section(const Frame& f, size_t first, Timer& timer) const;
  bool single(const uint8_t* batch) const;
  bool read_ahead(int thread, int64_t n) const;

  Pool& pool_;
  const Kernels& kernels_;
  const Program program_;
  const std::vector<const Weight*> weights_;
  const std::vector<Vector> vectors_;
  uint8_t *kv_, *arena_;
  int64_t scratch_bytes_;
  HugeMemory scratch_, held_, pieces_;
  Barrier lone_{1};
  Shares shares_;
  const Pool::Rest rest_ = [this](int thread, int64_t n) { return read_ahead(thread, n); };
  HugeMemory own_;  // an arena for each thread, of which steps of one row touch little
};

}  // namespace ridgeline
