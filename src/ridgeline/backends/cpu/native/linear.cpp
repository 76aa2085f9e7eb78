// y = x W^T for float activations over every packed format: weights are unpacked, exactly, in registers.
//
// One order for every M: each output starts at 0 and takes fma(x[k], w[k], sum) with k ascending. Tiles of a
// few rows by 32 columns only decide how many such sums run side by side.
#include "kernels.h"
#include "simd.h"
#include "tiles.h"

namespace ridgeline::RL_ISA {
namespace {

// Adds weight vector w at column k, to which x points, to the sums of M rows.
template <int M>
RL_INLINE void step(f32x16 (&sums)[M][2], int v, f32x16 w, const float* x, int64_t stride) {
  RL_FOR (m, M) sums[m][v] = fma(splat(x[m * stride]), w, sums[m][v]);
}

// One unit (a layout step) of the 16 weight rows `v` of a panel against M rows of x, which points
// at its first k.
template <Format F, int M>
RL_INLINE void accumulate(f32x16 (&sums)[M][2], int v, const uint8_t* unit, const float* x, int64_t stride,
                          int64_t left) {
  if constexpr (F == Format::f32) {
    step(sums, v, load((const float*)(unit + v * 64)), x, stride);
  } else if constexpr (F == Format::bf16) {
    const u32x16 pairs = load_bits(unit + v * 64);
    step(sums, v, bf16_low(pairs), x, stride);
    if (left > 1) step(sums, v, bf16_high(pairs), x + 1, stride);
  } else if constexpr (F == Format::q8) {
    const f32x16 scale = load_f16(unit + 1024 + v * 32);
    for (int j = 0; j < 8; j++) {
      const u32x16 bytes = load_bits(unit + (2 * j + v) * 64) ^ 0x80808080u;
      RL_FOR (b, 4)
        step(sums, v, to_f32(as_i32(bytes << uint32_t(24 - 8 * b)) >> 24) * scale, x + 4 * j + b, stride);
    }
  } else {
    const f32x16 scale = load_f16(unit + 512 + v * 32), minimum = load_f16(unit + 576 + v * 32);
    for (int j = 0; j < 4; j++) {
      const u32x16 nibbles = load_bits(unit + (2 * j + v) * 64);
      RL_FOR (b, 8)
        step(sums, v, fma(nibble_to_f32(nibbles, 8 * (b & 3) + (b & 4)), scale, minimum), x + 8 * j + b,
             stride);
    }
  }
}

template <Format F>
struct Tile {
  // M rows of x from `row` against one panel.
  template <int M>
  static void run(const View& x, const Weight& w, const float* bias, const View& y, int64_t panel,
                  int64_t row) {
    constexpr Layout unit = layout(F);
    const int64_t units = w.units();
    const uint8_t* bytes = w.panel(panel);
    const float* in = x.row(row);
    f32x16 sums[M][2] = {};
    for (int64_t u = 0; u < units; u++, bytes += unit.unit_bytes, in += unit.step)
      RL_FOR (v, 2) accumulate<F>(sums, v, bytes, in, x.stride, w.cols - u * unit.step);
    store_tile(sums, bias, y, panel, row);
  }
};

}  // namespace

void linear(const View& x, const Weight& w, const float* bias, const View& y, Span panels) {
  switch (w.format) {
    case Format::f32:
      return for_tiles<Tile<Format::f32>>(x, w, bias, y, panels);
    case Format::bf16:
      return for_tiles<Tile<Format::bf16>>(x, w, bias, y, panels);
    case Format::q8:
      return for_tiles<Tile<Format::q8>>(x, w, bias, y, panels);
    case Format::q4:
      return for_tiles<Tile<Format::q4>>(x, w, bias, y, panels);
  }
}

}  // namespace ridgeline::RL_ISA
