// rms_norm, add_rms_norm and layer_norm. Sums run over 16 lanes and are then added in one fixed order.
#include "rowwise.h"

namespace ridgeline::RL_ISA {
namespace {

RL_INLINE float root(float x) {
  return __builtin_sqrtf(x);
}

RL_INLINE float sum_of_squares(const float* x, int64_t cols) {
  f32x16 total = {};
  for_vectors(cols, [&](int64_t c, int64_t n) {
    const f32x16 v = read(x + c, n);
    total = fma(v, v, total);
  });
  return sum(total);
}

RL_INLINE void rms_norm_row(const float* x, const float* w, float* out, int64_t cols, float eps) {
  const float scale = 1.0f / root(sum_of_squares(x, cols) / (float)cols + eps);
  for_vectors(cols,
              [&](int64_t c, int64_t n) { write(out + c, read(x + c, n) * scale * read(w + c, n), n); });
}

}  // namespace

void rms_norm(const View& x, const float* w, const View& out, float eps, int64_t width, Span rows) {
  if (width == 0) width = x.cols;
  for (int64_t r = rows.begin; r < rows.end; r++) {
    for (int64_t c = 0; c < x.cols; c += width) rms_norm_row(x.row(r) + c, w, out.row(r) + c, width, eps);
    count(Counted::acts, 2 * x.cols * 4);
    count_once(Counted::weights, w, width * 4);
  }
}

void add_rms_norm(const View& x, const View& y, const float* w, const View& total, const View& out, float eps,
                  Span rows) {
  for (int64_t r = rows.begin; r < rows.end; r++) {
    const float *a = x.row(r), *b = y.row(r);
    float* s = total.row(r);
    for_vectors(x.cols, [&](int64_t c, int64_t n) { write(s + c, read(a + c, n) + read(b + c, n), n); });
    rms_norm_row(s, w, out.row(r), x.cols, eps);
    count(Counted::acts, 4 * x.cols * 4);
    count_once(Counted::weights, w, x.cols * 4);
  }
}

void layer_norm(const View& x, const float* w, const float* b, const View& out, float eps, Span rows) {
  for (int64_t r = rows.begin; r < rows.end; r++) {
    const float* in = x.row(r);
    float* to = out.row(r);
    f32x16 total = {};
    for_vectors(x.cols, [&](int64_t c, int64_t n) { total += read(in + c, n); });
    const float mean = sum(total) / (float)x.cols;
    for_vectors(x.cols, [&](int64_t c, int64_t n) { write(to + c, read(in + c, n) - mean, n); });
    const float scale = 1.0f / root(sum_of_squares(to, x.cols) / (float)x.cols + eps);
    for_vectors(x.cols, [&](int64_t c, int64_t n) {
      const f32x16 y = read(to + c, n) * scale * read(w + c, n);
      write(to + c, b ? y + read(b + c, n) : y, n);
    });
    count(Counted::acts, 2 * x.cols * 4);
    count_once(Counted::weights, w, x.cols * 4);
    if (b) count_once(Counted::weights, b, x.cols * 4);
  }
}

}  // namespace ridgeline::RL_ISA
