// What this machine can do at most: read bandwidth, arithmetic peaks and the cost of a barrier, with all
// threads of a pool at once.
#pragma once

#include "kernels.h"
#include "memory.h"
#include "pool.h"

namespace ridgeline {

// Each thread writes its own contiguous share, so that its pages exist, and near it.
void touch(Pool& pool, HugeMemory& memory);

// GB/s of `rounds` passes over `bytes` (in whole pages for each thread), each thread over the front of its
// own share of `memory`, which was touched. Throws std::invalid_argument for more bytes than there are.
double read_gb_s(Pool& pool, const Kernels& kernels, const HugeMemory& memory, int64_t bytes, int64_t rounds);

// Operations a second in units of 1e9, a multiply-add being two; the best of several runs. 0 where the level
// has no instruction of this kind.
double peak_gops(Pool& pool, const Kernels& kernels, Arithmetic kind);

// Nanoseconds of one round of the pool's barrier; the best of several runs.
double barrier_ns(Pool& pool);

}  // namespace ridgeline
