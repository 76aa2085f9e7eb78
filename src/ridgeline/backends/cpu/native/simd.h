// The vector vocabulary of the kernels: 16 float lanes and a few special functions.
//
// Kernel files are compiled once per ISA level, each in its own namespace RL_ISA; this header gives them the same
// names everywhere. Plain arithmetic is the compiler's vector extension; only what it cannot express is written
// twice. Everything is `static inline`: a shared inline function would let the linker put AVX-512 code into the
// portable path. For the same reason kernels use no std:: templates.
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#define RL_INLINE static inline __attribute__((always_inline, unused))
#define RL_UNROLL _Pragma("GCC unroll 16")

namespace ridgeline::RL_ISA {

typedef float f32x16 __attribute__((vector_size(64)));
typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef int16_t i16x32 __attribute__((vector_size(64)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));

constexpr int LANES = 16;

// Rows of a register tile: 6 x 2 (linear) or 6 x 4 (attention) vectors of sums fill 32 registers of 16 lanes.
#if defined(__AVX512F__)
constexpr int TILE_ROWS = 6;
#else
constexpr int TILE_ROWS = 2;
#endif

RL_INLINE f32x16 load(const float* p) {
  f32x16 v;
  memcpy(&v, p, sizeof v);
  return v;
}

RL_INLINE u32x16 load_bits(const uint8_t* p) {
  u32x16 v;
  memcpy(&v, p, sizeof v);
  return v;
}

RL_INLINE void store(float* p, f32x16 v) { memcpy(p, &v, sizeof v); }

RL_INLINE f32x16 splat(float x) { return f32x16{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }

RL_INLINE i32x16 splat(int32_t x) { return i32x16{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }

// The first n lanes of p (0 <= n <= 16), zero in the others; nothing beyond p[n - 1] is read.
RL_INLINE f32x16 load_part(const float* p, int64_t n) {
#if defined(__AVX512F__)
  return (f32x16)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
#else
  float lanes[LANES] = {};
  memcpy(lanes, p, (size_t)n * sizeof(float));
  return load(lanes);
#endif
}

RL_INLINE void store_part(float* p, f32x16 v, int64_t n) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
#else
  memcpy(p, &v, (size_t)n * sizeof(float));
#endif
}

// a * b + c: one rounding where the hardware has it, else two; never left to the compiler (-ffp-contract=off).
RL_INLINE f32x16 fma(f32x16 a, f32x16 b, f32x16 c) {
#if defined(__AVX512F__)
  return (f32x16)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  f32x16 out;
  for (int i = 0; i < LANES; i++) out[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return out;
#else
  return a * b + c;
#endif
}

RL_INLINE f32x16 to_f32(i32x16 x) { return __builtin_convertvector(x, f32x16); }

// Lane-wise choice; NaN in `a` or `b` loses to the other operand only as a comparison would have it.
RL_INLINE f32x16 maximum(f32x16 a, f32x16 b) { return a > b ? a : b; }

RL_INLINE f32x16 minimum(f32x16 a, f32x16 b) { return a < b ? a : b; }

RL_INLINE f32x16 absolute(f32x16 x) { return (f32x16)((u32x16)x & 0x7fffffffu); }

// acc + the dot product of 4 unsigned bytes of each lane of w with the 4 signed bytes of a.
RL_INLINE i32x16 dot4(i32x16 acc, u32x16 w, int32_t a) {
#if defined(__AVX512VNNI__)
  return (i32x16)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)w, _mm512_set1_epi32(a));
#else
  // Products of a u8 and an i8 fit 16 bits: even bytes, then odd bytes, two 16-bit products to a lane.
  const uint32_t bytes = (uint32_t)a;
  const int32_t a0 = (int8_t)bytes, a1 = (int8_t)(bytes >> 8), a2 = (int8_t)(bytes >> 16), a3 = (int8_t)(bytes >> 24);
  const i16x32 even = (i16x32)splat((int32_t)((uint32_t)(a0 & 0xffff) | ((uint32_t)a2 << 16)));
  const i16x32 odd = (i16x32)splat((int32_t)((uint32_t)(a1 & 0xffff) | ((uint32_t)a3 << 16)));
  const i32x16 p = (i32x16)((i16x32)(w & 0x00ff00ffu) * even);
  const i32x16 q = (i32x16)((i16x32)((w >> 8) & 0x00ff00ffu) * odd);
  return acc + (((p << 16) >> 16) + (p >> 16)) + (((q << 16) >> 16) + (q >> 16));
#endif
}

// 16 half-precision values, exactly.
RL_INLINE f32x16 load_f16(const uint8_t* p) {
#if defined(__AVX512F__)
  __m256i h;
  memcpy(&h, p, sizeof h);
  return (f32x16)_mm512_cvtph_ps(h);
#else
  u16x16 h;
  memcpy(&h, p, sizeof h);
  const u32x16 x = __builtin_convertvector(h, u32x16);
  const u32x16 sign = (x & 0x8000u) << 16, magnitude = (x & 0x7fffu) << 13;
  // 2^112 moves the exponent from half's bias to float's, subnormals included; inf and NaN need all exponent bits.
  const u32x16 scaled = (u32x16)((f32x16)magnitude * splat(0x1p112f));
  const u32x16 special = (u32x16)(magnitude >= 0x0f800000u);
  return (f32x16)(sign | scaled | (special & 0x7f800000u));
#endif
}

// 16 bfloat16 values, exactly.
RL_INLINE f32x16 load_bf16(const uint16_t* p) {
  u16x16 h;
  memcpy(&h, p, sizeof h);
  return (f32x16)(__builtin_convertvector(h, u32x16) << 16);
}

// The lower and the upper bfloat16 of each 32-bit lane.
RL_INLINE f32x16 bf16_low(u32x16 pairs) { return (f32x16)(pairs << 16); }

RL_INLINE f32x16 bf16_high(u32x16 pairs) { return (f32x16)(pairs & 0xffff0000u); }

// The 4 bits of each lane from bit `shift` up, as 0.0 .. 15.0.
RL_INLINE f32x16 nibble_to_f32(u32x16 x, int shift) {
#if defined(__AVX512F__)
  const __m512 values = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return (f32x16)_mm512_permutexvar_ps((__m512i)(x >> shift), values);
#else
  return to_f32((i32x16)((x >> shift) & 15u));
#endif
}

// Sum of the lanes, always as ((0+8)+(4+12)) + ... : the order is part of the result.
RL_INLINE float sum(f32x16 x) {
  float lanes[LANES];
  memcpy(lanes, &x, sizeof lanes);
  for (int width = LANES / 2; width > 0; width /= 2)
    for (int i = 0; i < width; i++) lanes[i] += lanes[i + width];
  return lanes[0];
}

RL_INLINE float largest(f32x16 x) {
  float lanes[LANES];
  memcpy(lanes, &x, sizeof lanes);
  for (int width = LANES / 2; width > 0; width /= 2)
    for (int i = 0; i < width; i++) lanes[i] = lanes[i] > lanes[i + width] ? lanes[i] : lanes[i + width];
  return lanes[0];
}

// Round half to even; |x| < 2^22.
RL_INLINE f32x16 round_even(f32x16 x) {
  const f32x16 magic = splat(0x1.8p23f);
  return (x + magic) - magic;
}

// 16 values rounded half to even to bytes, their sum returned lane-wise added to `total`; |x| <= 127.
RL_INLINE i32x16 store_int8(int8_t* p, f32x16 x, i32x16 total) {
  const i32x16 q = (i32x16)(x + splat(0x1.8p23f)) - 0x4b400000;
#if defined(__AVX512F__)
  const __m128i bytes = _mm512_cvtepi32_epi8((__m512i)q);
  memcpy(p, &bytes, sizeof bytes);
#else
  for (int i = 0; i < LANES; i++) p[i] = (int8_t)q[i];
#endif
  return total + q;
}

}  // namespace ridgeline::RL_ISA
