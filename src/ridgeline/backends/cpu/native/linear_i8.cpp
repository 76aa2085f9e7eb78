// y = x W^T for activations in groups of 32 int8 over q8 and q4 weights.
//
// Dot products within a group are exact in int32, so only groups have an order: ascending,
//   sum = fma(float(dot) * x_scale, w_scale, sum)
//   sum = fma(x_scale * float(x_sum), w_minimum, sum)   for q4
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

// Integer dot products of M rows with the 32 weight rows of one unit.
template <Format F, int M>
RL_INLINE void dot(i32x16 (&dots)[M][2], const uint8_t* unit, const Rows& x) {
  if constexpr (F == Format::q8) {
    // Stored bytes are q + 128: start from -128 * (sum of the activations).
    RL_FOR (m, M)
      RL_FOR (v, 2) dots[m][v] = splat(x.sum_of(m) * -128);
    RL_FOR (j, 8) {
      u32x16 w[2];
      RL_FOR (v, 2) w[v] = load_bits(unit + (2 * j + v) * 64);
      RL_FOR (m, M)
        RL_FOR (v, 2) dots[m][v] = dot4(dots[m][v], w[v], x.step(m, j));
    }
  } else {
    RL_FOR (m, M)
      RL_FOR (v, 2) dots[m][v] = i32x16{};
    RL_FOR (j, 4) {
      u32x16 low[2], high[2];
      RL_FOR (v, 2) {
        const u32x16 w = load_bits(unit + (2 * j + v) * 64);
        low[v] = w & 0x0f0f0f0fu;
        high[v] = (w >> 4u) & 0x0f0f0f0fu;
      }
      RL_FOR (m, M)
        RL_FOR (v, 2) dots[m][v] = dot4(dots[m][v], low[v], x.step(m, 2 * j));
      RL_FOR (m, M)
        RL_FOR (v, 2) dots[m][v] = dot4(dots[m][v], high[v], x.step(m, 2 * j + 1));
    }
  }
}

template <Format F>
struct Tile {
  // M rows of x from `row` against one panel.
  template <int M>
  static void run(const QuantizedView& x, const Weight& w, const float* bias, const View& y, int64_t panel,
                  int64_t row) {
    constexpr int64_t scales = F == Format::q8 ? 1024 : 512, unit_bytes = layout(F).unit_bytes;
    const int64_t groups = w.units();
    const uint8_t* unit = w.panel(panel);
    Rows in{x.q(row), x.scale(row), x.sum(row), x.stride};
    f32x16 sums[M][2] = {};
    for (int64_t g = 0; g < groups; g++, unit += unit_bytes, in.q += GROUP, in.scale++, in.sum++) {
      i32x16 dots[M][2];
      dot<F>(dots, unit, in);
      RL_FOR (v, 2) {
        const f32x16 scale = load_f16(unit + scales + v * 32);
        RL_FOR (m, M) sums[m][v] = fma(to_f32(dots[m][v]) * in.scale_of(m), scale, sums[m][v]);
        if constexpr (F == Format::q4) {
          const f32x16 minimum = load_f16(unit + scales + 64 + v * 32);
          RL_FOR (m, M) sums[m][v] = fma(splat(in.scale_of(m) * (float)in.sum_of(m)), minimum, sums[m][v]);
        }
      }
    }
    store_tile(sums, bias, y, panel, row);
  }
};

}  // namespace

void linear_i8(const QuantizedView& x, const Weight& w, const float* bias, const View& y, Span panels) {
  if (w.format == Format::q8)
    for_tiles<Tile<Format::q8>>(x, w, bias, y, panels);
  else
    for_tiles<Tile<Format::q4>>(x, w, bias, y, panels);
}

}  // namespace ridgeline::RL_ISA
