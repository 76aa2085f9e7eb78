// One machine register of float, int32 or uint32 lanes, and what the compiler's vector extension
// cannot say about it.
//
// The widths: 64 bytes with AVX-512, 32 with AVX2, else 16. simd.h builds 16 lanes out of these.
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define RL_INLINE static inline __attribute__((always_inline, unused))
#define RL_UNROLL _Pragma("GCC unroll 16")
#define RL_UNROLL_8 _Pragma("GCC unroll 8")
#define RL_UNROLL_4 _Pragma("GCC unroll 4")
#define RL_FOR(i, n) RL_UNROLL for (int i = 0; i < (n); i++)

namespace ridgeline::RL_ISA {

#if defined(__AVX512F__)
#define RL_BYTES 64
#elif defined(__AVX2__)
#define RL_BYTES 32
#else
#define RL_BYTES 16
#endif

typedef float f32r __attribute__((vector_size(RL_BYTES)));
typedef int32_t i32r __attribute__((vector_size(RL_BYTES)));
typedef uint32_t u32r __attribute__((vector_size(RL_BYTES)));
typedef uint8_t u8r __attribute__((vector_size(RL_BYTES / 4)));
typedef uint16_t u16r __attribute__((vector_size(RL_BYTES / 2)));

constexpr int REGISTER_LANES = RL_BYTES / 4;

RL_INLINE void load_into(f32r& v, const float* p) {
  memcpy(&v, p, sizeof v);
}

RL_INLINE void load_into(u32r& v, const uint8_t* p) {
  memcpy(&v, p, sizeof v);
}

RL_INLINE void store(float* p, f32r v) {
  memcpy(p, &v, sizeof v);
}

RL_INLINE void splat_into(f32r& v, float x) {
  v = x - f32r{};
}

RL_INLINE void splat_into(i32r& v, int32_t x) {
  v = x - i32r{};
}

RL_INLINE f32r as_f32(i32r x) {
  return (f32r)x;
}

RL_INLINE f32r as_f32(u32r x) {
  return (f32r)x;
}

RL_INLINE i32r as_i32(f32r x) {
  return (i32r)x;
}

RL_INLINE i32r as_i32(u32r x) {
  return (i32r)x;
}

RL_INLINE u32r as_u32(f32r x) {
  return (u32r)x;
}

RL_INLINE u32r as_u32(i32r x) {
  return (u32r)x;
}

RL_INLINE f32r to_f32(i32r x) {
  return __builtin_convertvector(x, f32r);
}

RL_INLINE f32r select(i32r mask, f32r a, f32r b) {
  return mask ? a : b;
}

RL_INLINE i32r select(i32r mask, i32r a, i32r b) {
  return mask ? a : b;
}

RL_INLINE f32r fma(f32r a, f32r b, f32r c) {
#if defined(__AVX512F__)
  return (f32r)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
  return (f32r)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_FEATURE_FMA)
  f32r out;
  for (int i = 0; i < REGISTER_LANES; i++) out[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return out;
#else
  return a * b + c;
#endif
}

RL_INLINE f32r maximum(f32r a, f32r b) {
#if defined(__AVX512F__)
  return (f32r)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (f32r)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}

RL_INLINE f32r minimum(f32r a, f32r b) {
#if defined(__AVX512F__)
  return (f32r)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (f32r)_mm256_min_ps((__m256)a, (__m256)b);
#else
  return a < b ? a : b;
#endif
}

// Sums of two 16-bit products per lane.
RL_INLINE i32r madd(u32r w, int32_t pair) {
  i32r a;
  splat_into(a, pair);
#if defined(__AVX512F__)
  return (i32r)_mm512_madd_epi16((__m512i)w, (__m512i)a);
#elif defined(__AVX2__)
  return (i32r)_mm256_madd_epi16((__m256i)w, (__m256i)a);
#elif defined(__x86_64__)
  return (i32r)_mm_madd_epi16((__m128i)w, (__m128i)a);
#else
  const i32r x = (i32r)w;
  return ((x << 16) >> 16) * ((a << 16) >> 16) + (x >> 16) * (a >> 16);
#endif
}

RL_INLINE i32r dot4(i32r acc, u32r w, int32_t a) {
#if defined(__AVX512VNNI__)
  return (i32r)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)w, _mm512_set1_epi32(a));
#elif RL_BYTES == 32
  const __m256i x = _mm256_set1_epi32(a), even = _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8);
  const __m256i w_even = (__m256i)(w & 0x00ff00ffu), w_odd = _mm256_srli_epi16((__m256i)w, 8);
  return acc +
         ((i32r)_mm256_madd_epi16(w_even, even) + (i32r)_mm256_madd_epi16(w_odd, _mm256_srai_epi16(x, 8)));
#else
  const uint32_t b = (uint32_t)a;
  const int32_t even =
      (int32_t)((uint32_t)((int8_t)b & 0xffff) | ((uint32_t)(int32_t)(int8_t)(b >> 16) << 16));
  const int32_t odd =
      (int32_t)((uint32_t)((int8_t)(b >> 8) & 0xffff) | ((uint32_t)(int32_t)(int8_t)(b >> 24) << 16));
  return acc + (madd(w & 0x00ff00ffu, even) + madd((w >> 8) & 0x00ff00ffu, odd));
#endif
}

#if RL_BYTES == 32
typedef int16_t i16r __attribute__((vector_size(RL_BYTES)));

// acc + the sums of two products each, of codes below 16 with signed bytes. SHORT_STEPS of them fit 16 bits.
RL_INLINE i16r dot2(i16r acc, u32r w, int32_t a) {
  return acc + (i16r)_mm256_maddubs_epi16((__m256i)w, _mm256_set1_epi32(a));
}

RL_INLINE i32r add_pairs(i32r acc, i16r x) {
  return acc + (i32r)_mm256_madd_epi16((__m256i)x, _mm256_set1_epi16(1));
}

RL_INLINE u32r magnitude(u32r w) {
  return (u32r)_mm256_abs_epi8((__m256i)w);
}

// acc + the dot product of 4 signed bytes of each lane of w with those of a, none of which is -128.
RL_INLINE i32r dot4_centred(i32r acc, u32r w, u32r magnitude, int32_t a) {
  const __m256i x = _mm256_sign_epi8(_mm256_set1_epi32(a), (__m256i)w);
  return add_pairs(acc, (i16r)_mm256_maddubs_epi16((__m256i)magnitude, x));
}
#endif

RL_INLINE void load_f16_into(f32r& v, const uint8_t* p) {
#if defined(__AVX512F__)
  v = (f32r)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__AVX2__)
  v = (f32r)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
  u16r h;
  memcpy(&h, p, sizeof h);
  const u32r x = __builtin_convertvector(h, u32r);
  const u32r sign = (x & 0x8000u) << 16, magnitude = (x & 0x7fffu) << 13;
  // 2^112 moves the exponent from half's bias to float's, subnormals included; inf and NaN
  // need all exponent bits.
  const u32r scaled = (u32r)((f32r)magnitude * 0x1p112f);
  const u32r special = (u32r)(magnitude >= 0x0f800000u);
  v = (f32r)(sign | scaled | (special & 0x7f800000u));
#endif
}

// Unsigned bytes as floats.
RL_INLINE void load_u8_into(f32r& v, const uint8_t* p) {
  u8r bytes;
  memcpy(&bytes, p, sizeof bytes);
  v = __builtin_convertvector(bytes, f32r);
}

RL_INLINE void load_bf16_into(f32r& v, const uint16_t* p) {
  u16r h;
  memcpy(&h, p, sizeof h);
  v = (f32r)(__builtin_convertvector(h, u32r) << 16);
}

RL_INLINE f32r nibble_to_f32(u32r x, uint32_t shift) {
#if defined(__AVX512F__)
  const __m512 values = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return (f32r)_mm512_permutexvar_ps((__m512i)(x >> shift), values);
#else
  return to_f32((i32r)((x >> shift) & 15u));
#endif
}

RL_INLINE f32r round_even(f32r x) {
#if defined(__AVX512F__)
  return (f32r)_mm512_roundscale_ps((__m512)x, 0);
#else
  return (x + 0x1.8p23f) - 0x1.8p23f;
#endif
}

RL_INLINE f32r scale_by_power(f32r x, f32r n) {
#if defined(__AVX512F__)
  return (f32r)_mm512_scalef_ps((__m512)x, (__m512)n);
#else
  // Two factors, so that the range beyond one power's exponent, subnormals and infinity come out right.
  const i32r whole = (i32r)(n + 0x1.8p23f) - 0x4b400000, half = whole >> 1;
  return x * (f32r)((half + 127) << 23) * (f32r)((whole - half + 127) << 23);
#endif
}

// a[0], b[0], a[1], b[1], ...: the first register of them in a, the second in b.
RL_INLINE void interleave(f32r& a, f32r& b) {
  const f32r x = a, y = b;
#if defined(__AVX512F__)
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  a = (f32r)_mm512_permutex2var_ps((__m512)x, low, (__m512)y);
  b = (f32r)_mm512_permutex2var_ps((__m512)x, high, (__m512)y);
#else
  for (int i = 0; i < REGISTER_LANES / 2; i++) {
    a[2 * i] = x[i];
    a[2 * i + 1] = y[i];
    b[2 * i] = x[i + REGISTER_LANES / 2];
    b[2 * i + 1] = y[i + REGISTER_LANES / 2];
  }
#endif
}

// Upper half onto lower half until one lane is left.
RL_INLINE float sum(f32r x) {
  float lanes[REGISTER_LANES];
  memcpy(lanes, &x, sizeof lanes);
  RL_UNROLL for (int width = REGISTER_LANES / 2; width > 0; width /= 2) RL_FOR (i, width) lanes[i] +=
      lanes[i + width];
  return lanes[0];
}

RL_INLINE int32_t sum(i32r x) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_epi32((__m512i)x);
#else
  int32_t total = 0;
  RL_FOR (i, REGISTER_LANES) total += x[i];
  return total;
#endif
}

RL_INLINE float largest(f32r x) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)x);
#else
  float top = x[0];
  RL_UNROLL for (int i = 1; i < REGISTER_LANES; i++) top = x[i] > top ? x[i] : top;
  return top;
#endif
}

RL_INLINE int32_t largest(i32r x) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_epi32((__m512i)x);
#else
  int32_t top = x[0];
  RL_UNROLL for (int i = 1; i < REGISTER_LANES; i++) top = x[i] > top ? x[i] : top;
  return top;
#endif
}

// The low byte of each lane.
RL_INLINE void store_bytes(int8_t* p, i32r q) {
#if defined(__AVX512F__)
  _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8((__m512i)q));
#else
  RL_FOR (i, REGISTER_LANES) p[i] = (int8_t)q[i];
#endif
}

}  // namespace ridgeline::RL_ISA
