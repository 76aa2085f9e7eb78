#include "kv.h"

#include <string.h>

namespace ridgeline {

template <class T>
static void copy_slot(const KVView& kv, int64_t source, int64_t target) {
  const int64_t from = source % PAGE, to = target % PAGE;
  for (int64_t h = 0; h < kv.n_kv_heads; h++) {
    const T *keys = (const T*)kv.keys(source / PAGE, h), *values = (const T*)kv.values(source / PAGE, h);
    T *new_keys = (T*)kv.keys(target / PAGE, h), *new_values = (T*)kv.values(target / PAGE, h);
    for (int64_t d = 0; d < kv.padded_dim(); d++) {
      new_keys[kv.key_at(to, d)] = keys[kv.key_at(from, d)];
      new_values[kv.value_at(to, d)] = values[kv.value_at(from, d)];
    }
    if (kv.format != KVFormat::int8) continue;
    memcpy(kv.key_scales(target / PAGE, h) + 2 * to, kv.key_scales(source / PAGE, h) + 2 * from, 2);
    memcpy(kv.value_scales(target / PAGE, h) + 2 * to, kv.value_scales(source / PAGE, h) + 2 * from, 2);
  }
}

void copy_slots(const KVView& kv, int64_t source, int64_t target, int64_t count) {
  const bool whole = source % PAGE == 0 && target % PAGE == 0 && count % PAGE == 0;
  const int64_t each = whole ? PAGE : 1;
  for (int64_t i = 0; i < count; i += each) {
    const int64_t at =
        target > source ? count - each - i : i;  // an overlap must not read what it has overwritten
    if (whole)
      memmove(kv.keys((target + at) / PAGE, 0), kv.keys((source + at) / PAGE, 0), (size_t)kv.page_bytes());
    else if (kv.format == KVFormat::f32)
      copy_slot<uint32_t>(kv, source + at, target + at);
    else if (kv.format == KVFormat::bf16)
      copy_slot<uint16_t>(kv, source + at, target + at);
    else
      copy_slot<uint8_t>(kv, source + at, target + at);
  }
}

}  // namespace ridgeline
