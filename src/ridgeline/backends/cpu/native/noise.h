// The noise of sampling: a hash of (seed, choice, position, purpose, token id), as ops/sample.py defines it.
#pragma once

#include <math.h>
#include <stdint.h>

namespace ridgeline {

constexpr uint64_t GOLDEN = 0x9E3779B97F4A7C15ull;

// splitmix64's finaliser (Steele et al. 2014).
static inline uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

// Uniform in (0, 1), from the top 32 bits of a token's hash.
static inline double uniform(uint64_t key, int64_t id) {
  return ((double)(mix(key + ((uint64_t)id + 1) * GOLDEN) >> 32) + 0.5) * 0x1p-32;
}

// A logit less the logarithm of its token's unit exponential noise.
static inline double noisy(float logit, uint64_t key, int64_t id) {
  return (double)logit - log(-log1p(-uniform(key, id)));
}

}  // namespace ridgeline
