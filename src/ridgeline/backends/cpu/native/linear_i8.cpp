// y = x W^T for activations in groups of 32 int8 over q8 and q4 weights.
//
// Dot products within a group are exact in int32, so only groups have an order: ascending,
//   sum = fma(float(dot) * x_scale, w_scale, sum), and for q4 then sum = fma(x_scale * float(x_sum), w_minimum, sum).
#include "kernels.h"
#include "simd.h"
#include "tiles.h"

namespace ridgeline::RL_ISA {
namespace {

struct Rows {  // one group of M consecutive activation rows
  const int8_t* q;
  const float* scale;
  const int32_t* sum;
  int64_t stride;  // bytes
  int32_t step(int m, int j) const {
    int32_t four;
    memcpy(&four, q + m * stride + 4 * j, 4);
    return four;
  }
  float scale_of(int m) const { return *(const float*)((const uint8_t*)scale + m * stride); }
  int32_t sum_of(int m) const { return *(const int32_t*)((const uint8_t*)sum + m * stride); }
};

// Integer dot products of M rows with 16 weight rows `v` of one unit.
template <Format F, int M, int V>
RL_INLINE void dot(i32x16 (&dots)[M][V], const uint8_t* const (&units)[V / 2], const Rows& x) {
  if constexpr (F == Format::q8) {
    // Stored bytes are q + 128: start from -128 * (sum of the activations).
    RL_UNROLL for (int m = 0; m < M; m++) RL_UNROLL for (int v = 0; v < V; v++) dots[m][v] = splat(x.sum_of(m) * -128);
    RL_UNROLL for (int j = 0; j < 8; j++) {
      u32x16 w[V];
      RL_UNROLL for (int v = 0; v < V; v++) w[v] = load_bits(units[v / 2] + (2 * j + v % 2) * 64);
      RL_UNROLL for (int m = 0; m < M; m++)
        RL_UNROLL for (int v = 0; v < V; v++) dots[m][v] = dot4(dots[m][v], w[v], x.step(m, j));
    }
  } else {
    RL_UNROLL for (int m = 0; m < M; m++) RL_UNROLL for (int v = 0; v < V; v++) dots[m][v] = i32x16{};
    RL_UNROLL for (int j = 0; j < 4; j++) {
      u32x16 low[V], high[V];
      RL_UNROLL for (int v = 0; v < V; v++) {
        const u32x16 w = load_bits(units[v / 2] + (2 * j + v % 2) * 64);
        low[v] = w & 0x0f0f0f0fu;
        high[v] = (w >> 4) & 0x0f0f0f0fu;
      }
      RL_UNROLL for (int m = 0; m < M; m++)
        RL_UNROLL for (int v = 0; v < V; v++) dots[m][v] = dot4(dots[m][v], low[v], x.step(m, 2 * j));
      RL_UNROLL for (int m = 0; m < M; m++)
        RL_UNROLL for (int v = 0; v < V; v++) dots[m][v] = dot4(dots[m][v], high[v], x.step(m, 2 * j + 1));
    }
  }
}

template <Format F, int M, int P>
void tile(const QuantizedView& x, const Weight& w, const float* bias, const View& y, int64_t panel, int64_t row) {
  constexpr int V = 2 * P, scales = F == Format::q8 ? 1024 : 512;
  const int64_t groups = w.units();
  const uint8_t* units[P];
  RL_UNROLL for (int p = 0; p < P; p++) units[p] = w.panel(panel + p);
  Rows in{x.q(row), x.scale(row), x.sum(row), x.stride};
  f32x16 sums[M][V] = {};
  for (int64_t g = 0; g < groups; g++, in.q += GROUP, in.scale++, in.sum++) {
    i32x16 dots[M][V];
    dot<F>(dots, units, in);
    RL_UNROLL for (int v = 0; v < V; v++) {
      const uint8_t* tail = units[v / 2] + scales + v % 2 * 32;
      const f32x16 scale = load_f16(tail);
      RL_UNROLL for (int m = 0; m < M; m++)
        sums[m][v] = fma(to_f32(dots[m][v]) * in.scale_of(m), scale, sums[m][v]);
      if constexpr (F == Format::q4) {
        const f32x16 minimum = load_f16(tail + 64);
        RL_UNROLL for (int m = 0; m < M; m++)
          sums[m][v] = fma(splat(in.scale_of(m) * (float)in.sum_of(m)), minimum, sums[m][v]);
      }
    }
    RL_UNROLL for (int p = 0; p < P; p++) units[p] += layout(F).unit_bytes;
  }
  store_tile(sums, bias, y, panel, row);
}

template <Format F>
struct Tiles {
  template <int M, int P>
  static void run(const QuantizedView& x, const Weight& w, const float* bias, const View& y, int64_t panel,
                  int64_t row) {
    tile<F, M, P>(x, w, bias, y, panel, row);
  }
};

}  // namespace

void linear_i8(const QuantizedView& x, const Weight& w, const float* bias, const View& y, Span panels) {
  if (w.format == Format::q8)
    for_tiles<Tiles<Format::q8>>(x, w, bias, y, panels);
  else
    for_tiles<Tiles<Format::q4>>(x, w, bias, y, panels);
}

}  // namespace ridgeline::RL_ISA
