// Elementwise kernels over [T, n] rows: adds, gates, activations, softcap.
#include "rowwise.h"
#include "vmath.h"

namespace ridgeline::RL_ISA {
namespace {

template <class F>
RL_INLINE void map(const View& x, const View& out, Span rows, F f) {
  for (int64_t r = rows.begin; r < rows.end; r++) {
    for_vectors(x.cols, [&](int64_t c, int64_t n) { write(out.row(r) + c, f(read(x.row(r) + c, n)), n); });
    count(Counted::acts, 2 * x.cols * 4);
  }
}

template <class F>
RL_INLINE void map2(const View& x, const View& y, const View& out, Span rows, F f) {
  for (int64_t r = rows.begin; r < rows.end; r++) {
    for_vectors(x.cols, [&](int64_t c, int64_t n) {
      write(out.row(r) + c, f(read(x.row(r) + c, n), read(y.row(r) + c, n)), n);
    });
    count(Counted::acts, 3 * x.cols * 4);
  }
}

RL_INLINE f32x16 gelu_tanh(f32x16 x) {
  const f32x16 inner = 0.797884561f * (x + 0.044715f * x * x * x);  // sqrt(2 / pi)
  return 0.5f * x * (1.0f + tanh(inner));
}

}  // namespace

void add(const View& x, const View& y, const View& out, Span rows) {
  map2(x, y, out, rows, [](f32x16 a, f32x16 b) { return a + b; });
}

void mul(const View& x, const View& y, const View& out, Span rows) {
  map2(x, y, out, rows, [](f32x16 a, f32x16 b) { return a * b; });
}

void silu_mul(const View& gate, const View& up, const View& out, Span rows) {
  map2(gate, up, out, rows, [](f32x16 g, f32x16 u) { return g / (1.0f + exp(-g)) * u; });
}

void gelu_mul(const View& gate, const View& up, const View& out, Span rows) {
  map2(gate, up, out, rows, [](f32x16 g, f32x16 u) { return gelu_tanh(g) * u; });
}

void gelu(const View& x, const View& out, bool exact, Span rows) {
  if (exact)
    map(x, out, rows, [](f32x16 v) { return 0.5f * v * (1.0f + erf(v * 0.707106781f)); });
  else
    map(x, out, rows, [](f32x16 v) { return gelu_tanh(v); });
}

void relu2(const View& x, const View& out, Span rows) {
  map(x, out, rows, [](f32x16 v) {
    const f32x16 positive = select(v < 0.0f, f32x16{}, v);
    return positive * positive;
  });
}

void softcap(const View& x, const View& out, float cap, Span rows) {
  map(x, out, rows, [cap](f32x16 v) { return cap * tanh(v / cap); });
}

}  // namespace ridgeline::RL_ISA
