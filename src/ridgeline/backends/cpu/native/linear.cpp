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

// One group of the 16 weight rows `v` of a unit of codes against M rows of x, which points at the group's
// first k.
template <Format F, int M>
RL_INLINE void add_group(Sums<M>& sums, int v, const uint8_t* codes, const uint8_t* behind,
                         const uint8_t* tail, const float* x, int64_t stride, int64_t left) {
  constexpr Layout l = layout(F);
  constexpr int per_vector = 32 / l.bits;
  const f32x16 scale = scales_of<F>(behind, tail, v);
  f32x16 minimum = {};
  if constexpr (l.has_minima()) minimum = minima_of<F>(behind, tail, v);
  for (int64_t j = 0; j < l.group / per_vector; j++) {
    const u32x16 bits = load_bits(codes + (2 * j + v) * 64);
    RL_FOR (b, per_vector) {
      const int64_t k = j * per_vector + b;
      if (k >= left) return;  // K padded to a whole unit
      f32x16 code;
      if constexpr (l.bits == 8)
        code = to_f32(as_i32((bits >> uint32_t(8 * b)) & 0xffu));
      else
        code = nibble_to_f32(bits, 8 * (b & 3) + (b & 4));
      const f32x16 w = l.has_minima() ? fma(code, scale, minimum) : (code - (float)l.zero) * scale;
      Sums<M>::step(sums, v, w, x + k, stride);
    }
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
    const uint8_t* behind = unit + l.code_bytes();
    for (int64_t g = 0; g < l.unit() / l.group; g++)
      add_group<F>(sums, v, unit + g * (PANEL * l.group * l.bits / 8), behind + g * l.group_scale_bytes(),
                   tail, x + g * l.group, stride, left - g * l.group);
  }
}

template <Format F>
struct Tile {
  // M rows of x from `row` against one panel.
  template <int M>
  static void run(const View& x, int64_t row, const Panel& w, const float* bias, const View& y) {
    constexpr Layout l = layout(F);
    const uint8_t *bytes = w.units, *tail = bytes + w.count * l.unit_bytes();
    const float* in = x.row(row);
    Sums<M> sums{};
    for (int64_t u = 0; u < w.count; u++, bytes += l.unit_bytes(), in += l.unit())
      RL_FOR (v, 2)
        accumulate<F>(sums, v, bytes, l.is_super() ? tail + u / (SUPER / l.unit()) * l.tail_bytes() : tail,
                      in, x.stride, x.cols - u * l.unit());
    store_tile(sums.at, bias, y, w.index, row);
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
