#include "rows.h"

#include <math.h>
#include <string.h>

#include "pack.h"

namespace ridgeline {

void embedding(const EmbeddingArgs& a, const View& out, Span rows) {
  for (int64_t r = rows.begin; r < rows.end; r++) {
    float* to = out.row(r);
    if (a.input_row && a.input_rows && a.input_row[r] >= 0) {
      memcpy(to, a.input_rows + a.input_row[r] * out.cols, (size_t)out.cols * sizeof(float));
      continue;
    }
    unpack_row(a.table, a.ids[r], to);
    for (int64_t c = 0; c < out.cols; c++) to[c] *= a.scale;
  }
}

void take_rows(const View& x, const int32_t* index, const float* held, const View& out, Span rows) {
  for (int64_t r = rows.begin; r < rows.end; r++) {
    const float* source = index[r] >= 0 ? x.row(index[r]) : held + (-1 - index[r]) * out.cols;
    memcpy(out.row(r), source, (size_t)out.cols * sizeof(float));
  }
}

void rotary(const int32_t* positions, const float* inv_freq, float scale, const View& out, Span rows) {
  const int64_t half = out.cols / 2;
  for (int64_t r = rows.begin; r < rows.end; r++)
    for (int64_t i = 0; i < half; i++) {
      const float angle = (float)positions[r] * inv_freq[i];
      out.row(r)[i] = cosf(angle) * scale;
      out.row(r)[half + i] = sinf(angle) * scale;
    }
}

template <class T>
static void copy_slot(const KVView& kv, int64_t source, int64_t target) {
  const int64_t dim = kv.head_dim, from = source % PAGE, to = target % PAGE;
  for (int64_t h = 0; h < kv.n_kv_heads; h++) {
    const T* keys = (const T*)kv.keys(source / PAGE, h) + from;
    T* new_keys = (T*)kv.keys(target / PAGE, h) + to;
    for (int64_t d = 0; d < dim; d++) new_keys[d * PAGE] = keys[d * PAGE];
    memcpy((T*)kv.values(target / PAGE, h) + to * dim, (const T*)kv.values(source / PAGE, h) + from * dim,
           (size_t)dim * sizeof(T));
  }
}

void copy_slots(const KVView& kv, int64_t source, int64_t target, int64_t count) {
  const bool whole = source % PAGE == 0 && target % PAGE == 0 && count % PAGE == 0;
  if (whole) {
    memmove(kv.keys(target / PAGE, 0), kv.keys(source / PAGE, 0),
            (size_t)(count / PAGE * kv.n_kv_heads * 2 * kv.block_bytes()));
    return;
  }
  for (int64_t i = 0; i < count; i++) {
    const int64_t at =
        target > source ? count - 1 - i : i;  // an overlap must not read what it has overwritten
    if (kv.format == KVFormat::f32)
      copy_slot<uint32_t>(kv, source + at, target + at);
    else
      copy_slot<uint16_t>(kv, source + at, target + at);
  }
}

}  // namespace ridgeline
