// What a ceiling is measured with: loops that only load, or only multiply out of registers, with the
// instructions of the other kernels.
#include "kernels.h"
#include "register.h"

namespace ridgeline::RL_ISA {
namespace {

// Names a register of the widest kind to the compiler: what it holds was just used, and may have changed.
#if defined(__x86_64__)
#define RL_KEEP(v) asm volatile("" : "+v"(v))
#elif defined(__aarch64__)
#define RL_KEEP(v) asm volatile("" : "+w"(v))
#else
#define RL_KEEP(v) asm volatile("" : "+m"(v))
#endif

constexpr int CHAINS = 10;  // independent sums: latency (up to 5 cycles) times instructions a cycle (up to 2)

// `step(sum, w)` on every chain, `rounds` times; no part of it can be done once for all.
template <class V, class W, class Step>
RL_INLINE void repeat(int64_t rounds, W w, Step step) {
  V sums[CHAINS] = {};
  for (int64_t i = 0; i < rounds; i++)
    RL_FOR (c, CHAINS) {
      RL_KEEP(w);
      sums[c] = step(sums[c], w);
      RL_KEEP(sums[c]);
    }
}

#if defined(__AVX512F__)
// Beyond the instructions every CPU of this level has, hence its own target.
__attribute__((target("avx512bf16"))) int64_t multiply_bf16(int64_t rounds) {
  if (!__builtin_cpu_supports("avx512bf16")) return 0;
  const __m512bh ones = (__m512bh)_mm512_set1_epi32(0x3f803f80);
  __m512 sums[CHAINS] = {};
  for (int64_t i = 0; i < rounds; i++) {
    RL_FOR (c, CHAINS) sums[c] = _mm512_dpbf16_ps(sums[c], ones, ones);
    RL_FOR (c, CHAINS) RL_KEEP(sums[c]);
  }
  return rounds * CHAINS * 64;
}
#else
int64_t multiply_bf16(int64_t) {
  return 0;
}
#endif

}  // namespace

int64_t multiply(Arithmetic kind, int64_t rounds) {
  u32r w;
  load_into(w, (const uint8_t*)"01234567890123456789012345678901234567890123456789012345678901234");
  switch (kind) {
    case Arithmetic::int8:
#if RL_BYTES == 32
      repeat<i16r>(rounds, w, [](i16r sum, u32r x) { return dot2(sum, x, 0x01020304); });
#else
      repeat<i32r>(rounds, w, [](i32r sum, u32r x) { return dot4(sum, x, 0x01020304); });
#endif
      return rounds * CHAINS * REGISTER_LANES * 8;
    case Arithmetic::bf16:
      return multiply_bf16(rounds);
    case Arithmetic::f32:
      repeat<f32r>(rounds, as_f32(w), [](f32r sum, f32r x) { return fma(x, x, sum); });
      return rounds * CHAINS * REGISTER_LANES * 2;
  }
  return 0;
}

void read(const uint8_t* data, int64_t bytes) {
  u32r seen[4] = {};
  for (int64_t i = 0; i + 4 * RL_BYTES <= bytes; i += 4 * RL_BYTES)
    RL_FOR (r, 4) {
      u32r v;
      load_into(v, data + i + r * RL_BYTES);
      seen[r] = seen[r] | v;
    }
  RL_FOR (r, 4) RL_KEEP(seen[r]);
}

}  // namespace ridgeline::RL_ISA
