// y = x W^T for float activations over every packed format: weights are unpacked, exactly, in registers.
//
// One order for every M: each output starts at 0 and takes fma(x[k], w[k], sum) with k ascending. Tiles of a
// few rows by 32 columns only decide how many such sums run side by side.
#include "formats.h"
#include "kernels.h"
#include "simd.h"
#include "tiles.h"

namespace ridgeline::RL_ISA {
namespace {

// M rows of x by the 16 weight rows `v` of a panel.
template <int M>
struct Sums {
  f32x16 at[M][2];

  // Adds weight vector w at column k, to which x points.
  RL_INLINE void step(Sums& s, int v, f32x16 w, const float* x, int64_t stride) {
    RL_FOR (m, M) s.at[m][v] = fma(splat(x[m * stride]), w, s.at[m][v]);
  }
};

// The 4 (8 bit) or 8 (4 bit) k of code vector `j` of a unit.
template <Format F, int M>
RL_INLINE void add_codes(Sums<M>& sums, int v, const uint8_t* codes, int64_t j, f32x16 scale, f32x16 minimum,
                         const float* x, int64_t stride, int64_t left) {
  constexpr Layout l = layout(F);
  constexpr int64_t per_vector = 32 / l.bits;
  const u32x16 bits = load_bits(codes + (2 * j + v) * 64);
  x += j * per_vector;
  RL_FOR (b, per_vector) {
    if (j * per_vector + b >= left) return;  // K padded to a whole unit
    f32x16 w;
    if constexpr (l.bits == 8)
      w = (to_f32(as_i32((bits >> uint32_t(8 * b)) & 0xffu)) - (float)l.zero) * scale;
    else if constexpr (l.scales == Scales::half_min)
      w = fma(nibble_to_f32(bits, 8 * (b & 3) + (b & 4)), scale, minimum);
    else
      w = (nibble_to_f32(bits, 8 * (b & 3) + (b & 4)) - (float)l.zero) * scale;
    Sums<M>::step(sums, v, w, x + b, stride);
  }
}

// One unit of the 16 weight rows `v` of a panel against M rows of x, which points at its first k.
template <Format F, int M>
RL_INLINE void accumulate(Sums<M>& sums, int v, const uint8_t* unit, const uint8_t* tail, const float* x,
                          int64_t stride, int64_t left) {
  constexpr Layout l = layout(F);
  if constexpr (F == Format::f32) {
    Sums<M>::step(sums, v, load((const float*)(unit + v * 64)), x, stride);
  } else if constexpr (F == Format::bf16) {
    const u32x16 pairs = load_bits(unit + v * 64);
    Sums<M>::step(sums, v, bf16_low(pairs), x, stride);
    if (left > 1) Sums<M>::step(sums, v, bf16_high(pairs), x + 1, stride);
  } else {
    const uint8_t* behind = unit + l.code_bytes() + v * 32;
    const f32x16 scale = l.scales == Scales::channel ? load((const float*)(tail + v * 64)) : load_f16(behind);
    const f32x16 minimum = l.scales == Scales::half_min ? load_f16(behind + 64) : f32x16{};
    for (int64_t j = 0; j < l.unit() * l.bits / 32; j++)
      add_codes<F>(sums, v, unit, j, scale, minimum, x, stride, left);
  }
}

template <Format F>
struct Tile {
  // M rows of x from `row` against one panel.
  template <int M>
  static void run(const View& x, const Weight& w, const float* bias, const View& y, int64_t panel,
                  int64_t row, const Ahead&) {
    constexpr Layout l = layout(F);
    const int64_t units = w.units();
    const uint8_t *bytes = w.panel(panel), *tail = bytes + units * l.unit_bytes();
    const float* in = x.row(row);
    Sums<M> sums{};
    for (int64_t u = 0; u < units; u++, bytes += l.unit_bytes(), in += l.unit())
      RL_FOR (v, 2) accumulate<F>(sums, v, bytes, tail, in, x.stride, w.cols - u * l.unit());
    store_tile(sums.at, bias, y, panel, row);
  }
};

template <Format F>
struct Linear {
  static void run(const View& x, const Weight& w, const float* bias, const View& y, Span panels) {
    for_tiles<Tile<F>, TILE_ROWS>(x, w, bias, y, panels, x.cols * (int64_t)sizeof(float), INT64_MAX);
  }
};

}  // namespace

void linear(const View& x, const Weight& w, const float* bias, const View& y, Span panels) {
  with_format<Linear>(w.format, x, w, bias, y, panels);
}

}  // namespace ridgeline::RL_ISA
