// The vector vocabulary of the kernels: 16 float or integer lanes, as one, two or four registers.
//
// Kernel files are compiled once per ISA level, each in its own namespace RL_ISA; this header gives them the
// same names everywhere. Everything is `static inline`: a shared inline function would let the linker put
// AVX-512 code into the portable path. For the same reason kernels use no std:: templates.
#pragma once

#include "register.h"

namespace ridgeline::RL_ISA {

constexpr int LANES = 16;

// Rows of a register tile: 6 x 2 (linear) or 6 x 4 (attention) vectors of sums fill AVX-512's 32 registers.
constexpr int TILE_ROWS = RL_BYTES == 64 ? 6 : 2;

// Two vectors as one of twice the lanes; every operation goes to both.
template <class V>
struct Two {
  V lo, hi;
};

#if RL_BYTES == 64
typedef f32r f32x16;
typedef i32r i32x16;
typedef u32r u32x16;
#elif RL_BYTES == 32
typedef Two<f32r> f32x16;
typedef Two<i32r> i32x16;
typedef Two<u32r> u32x16;
#else
typedef Two<Two<f32r> > f32x16;
typedef Two<Two<i32r> > i32x16;
typedef Two<Two<u32r> > u32x16;
#endif

template <class V>
constexpr int lanes_of = sizeof(V) / 4;

template <class S>
struct IsScalar {};
template <>
struct IsScalar<float> {
  typedef float type;
};
template <>
struct IsScalar<int32_t> {
  typedef int32_t type;
};
template <>
struct IsScalar<uint32_t> {
  typedef uint32_t type;
};

#define RL_OPERATOR(op)                                             \
  template <class V>                                                \
  RL_INLINE auto operator op(const Two<V>& a, const Two<V>& b) {    \
    return Two<decltype(a.lo op b.lo)>{a.lo op b.lo, a.hi op b.hi}; \
  }                                                                 \
  template <class V, class S, class = typename IsScalar<S>::type>   \
  RL_INLINE auto operator op(const Two<V>& a, S b) {                \
    return Two<decltype(a.lo op b)>{a.lo op b, a.hi op b};          \
  }                                                                 \
  template <class V, class S, class = typename IsScalar<S>::type>   \
  RL_INLINE auto operator op(S a, const Two<V>& b) {                \
    return Two<decltype(a op b.lo)>{a op b.lo, a op b.hi};          \
  }

RL_OPERATOR(+)
RL_OPERATOR(-)
RL_OPERATOR(*)
RL_OPERATOR(/)
RL_OPERATOR(<)
RL_OPERATOR(>)
RL_OPERATOR(>=)
RL_OPERATOR(&)
RL_OPERATOR(|)
RL_OPERATOR(^)
RL_OPERATOR(<<)
RL_OPERATOR(>>)

template <class V>
RL_INLINE Two<V> operator-(const Two<V>& a) {
  return {-a.lo, -a.hi};
}

template <class V, class B>
RL_INLINE void operator+=(Two<V>& a, const B& b) {
  a = a + b;
}

template <class V, class B>
RL_INLINE void operator*=(Two<V>& a, const B& b) {
  a = a * b;
}

#define RL_UNARY(name)                                        \
  template <class V>                                          \
  RL_INLINE auto name(const Two<V>& a) {                      \
    return Two<decltype(name(a.lo))>{name(a.lo), name(a.hi)}; \
  }

RL_UNARY(as_f32)
RL_UNARY(as_i32)
RL_UNARY(as_u32)
RL_UNARY(to_f32)
RL_UNARY(round_even)

#define RL_BINARY(name)                                     \
  template <class V>                                        \
  RL_INLINE Two<V> name(const Two<V>& a, const Two<V>& b) { \
    return {name(a.lo, b.lo), name(a.hi, b.hi)};            \
  }

RL_BINARY(maximum)         // a > b ? a : b, so that b is taken where either is NaN
RL_BINARY(minimum)         // a < b ? a : b
RL_BINARY(scale_by_power)  // a * 2^b for whole b, -300 < b < 300

#define RL_LOAD(name, pointer, step)          \
  template <class V>                          \
  RL_INLINE void name(Two<V>& v, pointer p) { \
    name(v.lo, p);                            \
    name(v.hi, p + lanes_of<V> * (step));     \
  }

RL_LOAD(load_into, const float*, 1)
RL_LOAD(load_into, const uint8_t*, 4)
RL_LOAD(load_f16_into, const uint8_t*, 2)
RL_LOAD(load_bf16_into, const uint16_t*, 1)
RL_LOAD(load_u8_into, const uint8_t*, 1)

template <class V, class S>
RL_INLINE void splat_into(Two<V>& v, S x) {
  splat_into(v.lo, x);
  splat_into(v.hi, x);
}

template <class V>
RL_INLINE void store(float* p, const Two<V>& v) {
  store(p, v.lo);
  store(p + lanes_of<V>, v.hi);
}

template <class V>
RL_INLINE void store_bytes(int8_t* p, const Two<V>& q) {
  store_bytes(p, q.lo);
  store_bytes(p + lanes_of<V>, q.hi);
}

// a * b + c: one rounding where the hardware has it, else two; never left to the compiler
// (-ffp-contract=off).
template <class V>
RL_INLINE Two<V> fma(const Two<V>& a, const Two<V>& b, const Two<V>& c) {
  return {fma(a.lo, b.lo, c.lo), fma(a.hi, b.hi, c.hi)};
}

template <class M, class V>
RL_INLINE Two<V> select(const Two<M>& mask, const Two<V>& a, const Two<V>& b) {
  return {select(mask.lo, a.lo, b.lo), select(mask.hi, a.hi, b.hi)};
}

// acc + the dot product of 4 unsigned bytes of each lane of w with the 4 signed bytes of a; exact.
template <class I, class U>
RL_INLINE Two<I> dot4(const Two<I>& acc, const Two<U>& w, int32_t a) {
  return {dot4(acc.lo, w.lo, a), dot4(acc.hi, w.hi, a)};
}

#if RL_BYTES == 32
typedef Two<i16r> i16x32;
constexpr int SHORT_STEPS = 32768 / (15 * 128 * 2);

RL_INLINE i16x32 dot2(const i16x32& acc, const u32x16& w, int32_t a) {
  return {dot2(acc.lo, w.lo, a), dot2(acc.hi, w.hi, a)};
}

RL_INLINE u32x16 magnitude(const u32x16& w) {
  return {magnitude(w.lo), magnitude(w.hi)};
}

RL_INLINE i32x16 dot4_centred(const i32x16& acc, const u32x16& w, const u32x16& m, int32_t a) {
  return {dot4_centred(acc.lo, w.lo, m.lo, a), dot4_centred(acc.hi, w.hi, m.hi, a)};
}

RL_INLINE i32x16 add_pairs(const i32x16& acc, const i16x32& x) {
  return {add_pairs(acc.lo, x.lo), add_pairs(acc.hi, x.hi)};
}
#endif

// The 4 bits of each lane from bit `shift` up, as 0.0 .. 15.0.
template <class V>
RL_INLINE auto nibble_to_f32(const Two<V>& x, uint32_t shift) {
  return Two<decltype(nibble_to_f32(x.lo, shift))>{nibble_to_f32(x.lo, shift), nibble_to_f32(x.hi, shift)};
}

// a[0], b[0], a[1], b[1], ...: the first 16 of them in a, the others in b.
template <class V>
RL_INLINE void interleave(Two<V>& a, Two<V>& b) {
  Two<V> low{a.lo, b.lo}, high{a.hi, b.hi};
  interleave(low.lo, low.hi);
  interleave(high.lo, high.hi);
  a = low;
  b = high;
}

// Sum of the lanes: upper half onto lower half until one is left, at every level. The order is
// part of the result.
template <class V>
RL_INLINE auto sum(const Two<V>& x) {
  return sum(x.lo + x.hi);
}

RL_INLINE float largest_of(float a, float b) {
  return a > b ? a : b;
}

RL_INLINE int32_t largest_of(int32_t a, int32_t b) {
  return a > b ? a : b;
}

template <class V>
RL_INLINE auto largest(const Two<V>& x) {
  return largest_of(largest(x.lo), largest(x.hi));
}

RL_INLINE f32x16 load(const float* p) {
  f32x16 v;
  load_into(v, p);
  return v;
}

RL_INLINE u32x16 load_bits(const uint8_t* p) {
  u32x16 v;
  load_into(v, p);
  return v;
}

// 16 half-precision values, exactly.
RL_INLINE f32x16 load_f16(const uint8_t* p) {
  f32x16 v;
  load_f16_into(v, p);
  return v;
}

// 16 unsigned bytes.
RL_INLINE f32x16 load_u8(const uint8_t* p) {
  f32x16 v;
  load_u8_into(v, p);
  return v;
}

// 16 bfloat16 values, exactly.
RL_INLINE f32x16 load_bf16(const uint16_t* p) {
  f32x16 v;
  load_bf16_into(v, p);
  return v;
}

RL_INLINE f32x16 splat(float x) {
  f32x16 v;
  splat_into(v, x);
  return v;
}

RL_INLINE i32x16 splat(int32_t x) {
  i32x16 v;
  splat_into(v, x);
  return v;
}

// 0, 1, ... 15, exact as integers.
RL_INLINE i32x16 lane_index() {
  const uint32_t index[LANES] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return as_i32(load_bits((const uint8_t*)index));
}

// The first n lanes of p (0 <= n <= 16), zero in the others; nothing beyond p[n - 1] is read.
RL_INLINE f32x16 load_part(const float* p, int64_t n) {
#if defined(__AVX512F__)
  return (f32x16)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
#else
  float lanes[LANES] = {};
  for (int64_t i = 0; i < n; i++) lanes[i] = p[i];
  return load(lanes);
#endif
}

RL_INLINE void store_part(float* p, const f32x16& v, int64_t n) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
#else
  float lanes[LANES];
  store(lanes, v);
  for (int64_t i = 0; i < n; i++) p[i] = lanes[i];
#endif
}

RL_INLINE f32x16 absolute(const f32x16& x) {
  return as_f32(as_u32(x) & 0x7fffffffu);
}

RL_INLINE f32x16 with_sign(const f32x16& x, const f32x16& sign) {
  return as_f32(as_u32(x) | (as_u32(sign) & 0x80000000u));
}

// The lower and the upper bfloat16 of each 32-bit lane.
RL_INLINE f32x16 bf16_low(const u32x16& pairs) {
  return as_f32(pairs << 16u);
}

RL_INLINE f32x16 bf16_high(const u32x16& pairs) {
  return as_f32(pairs & 0xffff0000u);
}

// 16 values rounded half to even to bytes; returns `total` plus them, lane by lane. |x| <= 127.
RL_INLINE i32x16 store_int8(int8_t* p, const f32x16& x, const i32x16& total) {
  const i32x16 q = as_i32(x + 0x1.8p23f) - 0x4b400000;
  store_bytes(p, q);
  return total + q;
}

}  // namespace ridgeline::RL_ISA
