// append_kv: stores the step's keys and values in their pages, in the state's format and layout.
#include "attention.h"
#include "bf16.h"
#include "count.h"

namespace ridgeline::RL_ISA {
namespace {

constexpr int64_t CHUNK = COLUMN_GROUP;  // dimensions converted at a time

struct Slot {
  uint8_t *keys, *values;
  int64_t key;  // within the page
};

// Scatters n converted dimensions from `dim` on, zeros up to the padding: keys P at a time, values one by
// one.
template <class T, int P>
RL_INLINE void scatter(const KVView& kv, const Slot& slot, int64_t dim, int64_t n, const T* k, const T* v) {
  T* keys = (T*)slot.keys + kv.key_at(slot.key, dim);
  for (int64_t d = 0; d < n; d += P) memcpy(keys + d * PAGE, k + d, P * sizeof(T));
  T* values = (T*)slot.values + kv.value_at(slot.key, dim);
  for (int64_t d = 0; d < n; d++) values[d * P] = v[d];
}

RL_INLINE f32x16 load_up_to(const float* p, int64_t n) {
  return n >= LANES ? load(p) : load_part(p, n > 0 ? n : 0);
}

void append_f32(const KVView& kv, const Slot& slot, const float* k, const float* v) {
  for (int64_t d = 0; d < kv.head_dim; d += CHUNK) {
    const int64_t left = kv.head_dim - d;
    scatter<float, 1>(kv, slot, d, left < CHUNK ? left : CHUNK, k + d, v + d);
  }
}

void append_bf16(const KVView& kv, const Slot& slot, const float* k, const float* v) {
  uint16_t keys[CHUNK], values[CHUNK];
  for (int64_t d = 0; d < kv.padded_dim(); d += CHUNK) {
    const int64_t left = kv.padded_dim() - d, n = left < CHUNK ? left : CHUNK;
    for (int64_t i = 0; i < n; i += LANES) {
      store_bf16(keys + i, load_up_to(k + d + i, kv.head_dim - d - i));
      store_bf16(values + i, load_up_to(v + d + i, kv.head_dim - d - i));
    }
    scatter<uint16_t, 2>(kv, slot, d, n, keys, values);
  }
}

// The scale of int8 values, rounded up to bfloat16 so that none is clipped, stored at p. NaN and infinity
// make it no number; values so small that its inverse would overflow become 0.
float store_scale(uint8_t* p, const float* x, int64_t n) {
  f32x16 most = {}, spoiled = {};
  for (int64_t d = 0; d < n; d += LANES) {
    const f32x16 values = load_up_to(x + d, n - d);
    most = maximum(absolute(values), most);
    spoiled += values * 0.0f;
  }
  const float exact = largest(most) / 127 + sum(spoiled);
  uint32_t bits;
  memcpy(&bits, &exact, sizeof bits);
  bits = (bits + (exact == exact ? 0xffffu : 0)) & 0xffff0000u;
  float scale;
  memcpy(&scale, &bits, sizeof scale);
  if (scale < 0x1p-100f) scale = 0;
  memcpy(&bits, &scale, sizeof bits);
  const uint16_t half = (uint16_t)(bits >> 16);
  memcpy(p, &half, sizeof half);
  return scale;
}

void append_int8(const KVView& kv, const Slot& slot, uint8_t* key_scale, uint8_t* value_scale, const float* k,
                 const float* v) {
  int8_t keys[CHUNK], values[CHUNK];
  const float k_scale = store_scale(key_scale, k, kv.head_dim),
              v_scale = store_scale(value_scale, v, kv.head_dim);
  const float k_inverse = k_scale > 0 ? 1 / k_scale : 0, v_inverse = v_scale > 0 ? 1 / v_scale : 0;
  for (int64_t d = 0; d < kv.padded_dim(); d += CHUNK) {
    const int64_t left = kv.padded_dim() - d, n = left < CHUNK ? left : CHUNK;
    for (int64_t i = 0; i < n; i += LANES) {
      store_int8(keys + i, load_up_to(k + d + i, kv.head_dim - d - i) * k_inverse, i32x16{});
      store_int8(values + i, load_up_to(v + d + i, kv.head_dim - d - i) * v_inverse, i32x16{});
    }
    for (int64_t i = 0; i < n; i++) keys[i] = (int8_t)(keys[i] ^ 0x80);  // + 128, unsigned
    scatter<int8_t, 4>(kv, slot, d, n, keys, values);
  }
}

}  // namespace

void append_head(const AttentionArgs& a, int64_t t, int64_t head) {
  const int64_t dim = a.kv.head_dim, page = a.kv_slot[t] / PAGE, key = a.kv_slot[t] % PAGE;
  const Slot slot{a.kv.keys(page, head), a.kv.values(page, head), key};
  const float *k = a.k.row(t) + head * dim, *v = a.v.row(t) + head * dim;
  count(Counted::acts, 2 * dim * 4);
  count(Counted::kv_written, 2 * a.kv.key_bytes());
  switch (a.kv.format) {
    case KVFormat::f32:
      return append_f32(a.kv, slot, k, v);
    case KVFormat::bf16:
      return append_bf16(a.kv, slot, k, v);
    case KVFormat::int8:
      return append_int8(a.kv, slot, a.kv.key_scales(page, head) + 2 * key,
                         a.kv.value_scales(page, head) + 2 * key, k, v);
  }
}

void append_kv(const AttentionArgs& a, Span rows) {
  for (int64_t t = rows.begin; t < rows.end; t++)
    for (int64_t h = 0; h < a.kv.n_kv_heads; h++) append_head(a, t, h);
}

}  // namespace ridgeline::RL_ISA
