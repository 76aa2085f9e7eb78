// The hashes of sampling: its noise, of (seed, choice, position, purpose, token id), as ops/sample.py defines
// it, and the colours of tokens, as ops/green.py does.
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

// A token's hash under a key.
static inline uint64_t mix_with(uint64_t key, int64_t id) {
  return mix(key + ((uint64_t)id + 1) * GOLDEN);
}

// A token's colour under the seed of its list: green below gamma * 2^32. On numbers or on lanes of them.
template <class U>
static inline __attribute__((always_inline)) U colour(uint64_t seed, U id) {
  U x = ((id + 1u) * 0x9E3779B9u) ^ (uint32_t)seed;
  x = (x ^ (x >> 16u)) * 0x7FEB352Du;
  x = ((x ^ (x >> 15u)) + (uint32_t)(seed >> 32)) * 0x846CA68Bu;
  return x ^ (x >> 16u);
}

// Uniform in (0, 1), from the top 32 bits of a token's hash.
static inline double uniform(uint64_t key, int64_t id) {
  return ((double)(mix_with(key, id) >> 32) + 0.5) * 0x1p-32;
}

// A logit less the logarithm of its token's unit exponential noise.
static inline double noisy(float logit, uint64_t key, int64_t id) {
  return (double)logit - log(-log1p(-uniform(key, id)));
}

}  // namespace ridgeline
