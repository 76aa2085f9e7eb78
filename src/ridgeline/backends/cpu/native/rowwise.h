// Walking a row by vectors, for the kernels that treat every element alike.
#pragma once

#include "count.h"
#include "kernels.h"
#include "simd.h"

namespace ridgeline::RL_ISA {

// Calls f(column, n) for each vector of a row; n < 16 only in the last, so that the loop is free of tails.
template <class F>
RL_INLINE void for_vectors(int64_t cols, F f) {
  int64_t c = 0;
  for (; c + LANES <= cols; c += LANES) f(c, (int64_t)LANES);
  if (c < cols) f(c, cols - c);
}

RL_INLINE f32x16 read(const float* p, int64_t n) {
  return n == LANES ? load(p) : load_part(p, n);
}

RL_INLINE void write(float* p, f32x16 v, int64_t n) {
  n == LANES ? store(p, v) : store_part(p, v, n);
}

}  // namespace ridgeline::RL_ISA
