// Rotation of the first 2h columns of every head by the angles of its row.
#include "count.h"
#include "kernels.h"
#include "simd.h"

namespace ridgeline::RL_ISA {
namespace {

// Pairs (i, i + half) of one head.
RL_INLINE void rotate_halves(const float* x, const float* cos, const float* sin, float* out, int64_t half) {
  int64_t i = 0;
  for (; i + LANES <= half; i += LANES) {
    const f32x16 a = load(x + i), b = load(x + half + i), c = load(cos + i), s = load(sin + i);
    store(out + i, a * c - b * s);
    store(out + half + i, b * c + a * s);
  }
  for (; i < half; i++) {
    const float a = x[i], b = x[half + i];
    out[i] = a * cos[i] - b * sin[i];
    out[half + i] = b * cos[i] + a * sin[i];
  }
}

// Pairs (2i, 2i + 1) of one head.
RL_INLINE void rotate_pairs(const float* x, const float* cos, const float* sin, float* out, int64_t half) {
  for (int64_t i = 0; i < half; i++) {
    const float a = x[2 * i], b = x[2 * i + 1];
    out[2 * i] = a * cos[i] - b * sin[i];
    out[2 * i + 1] = b * cos[i] + a * sin[i];
  }
}

}  // namespace

void rope(const View& x, const View& angles, const View& out, Rotation rotation, Span rows) {
  const int64_t half = angles.cols / 2, rest = rotation.head_dim - 2 * half;
  for (int64_t r = rows.begin; r < rows.end; r++) {
    const float *cos = angles.row(r), *sin = cos + half;
    count(Counted::acts, (2 * x.cols + angles.cols) * 4);
    for (int64_t c = 0; c < x.cols; c += rotation.head_dim) {
      const float* in = x.row(r) + c;
      float* to = out.row(r) + c;
      if (rotation.interleaved)
        rotate_pairs(in, cos, sin, to, half);
      else
        rotate_halves(in, cos, sin, to, half);
      if (rest && to != in) memcpy(to + 2 * half, in + 2 * half, (size_t)rest * sizeof(float));
    }
  }
}

}  // namespace ridgeline::RL_ISA
