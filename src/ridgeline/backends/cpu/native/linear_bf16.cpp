// y = x W^T for bfloat16 activations over bfloat16 weights: one sum per output, pairs of k ascending.
#include "bf16.h"
#include "kernels.h"
#include "tiles.h"

namespace ridgeline::RL_ISA {
namespace {

constexpr int ROWS = TILE_ROWS > 2 ? 8 : 4;  // of more, L1 does not hold the activations
constexpr int64_t AHEAD_FROM = 8;
constexpr int STEPS = 8;  // pairs of k between two looks ahead

struct Tile {
  template <int M>
  RL_INLINE void step(f32x16 (&sums)[M][2], const uint8_t* unit, const RowPointers<M>& x, int j) {
    u32x16 w[2];
    RL_FOR (v, 2) w[v] = load_bits(unit + (2 * j + v) * 64);
    RL_FOR (m, M) {
      const uint32_t pair = RowPointers<M>::template read<uint32_t>(x, m, j);
      RL_FOR (v, 2) sums[m][v] = dot2(sums[m][v], w[v], pair);
    }
  }

  // M rows of x from `row` against one panel.
  template <int M>
  static void run(const Bf16View& x, int64_t row, const Panel& w, const float* bias, const View& y) {
    constexpr int64_t unit_bytes = layout(Format::bf16).unit_bytes();
    const uint8_t* at = w.units;
    int64_t wait = w.turn;
    RowPointers<M> in = RowPointers<M>::at(x.row(row), x.stride * (int64_t)sizeof(uint16_t));
    f32x16 sums[M][2] = {};
    int64_t u = 0;
    for (; u + STEPS <= w.count; u += STEPS, at += STEPS * unit_bytes) {
      Panel::fetch(w, at, STEPS * unit_bytes, wait);
      RL_FOR (j, STEPS) step(sums, at, in, j);
      RowPointers<M>::advance(in, STEPS * 4);
    }
    for (int j = 0; u < w.count; u++, j++) step(sums, at, in, j);
    store_tile(sums, bias, y, w.index, row);
  }
};

}  // namespace

void linear_bf16(const Bf16View& x, const Weight& w, const float* bias, const View& y, Span panels) {
  for_tiles<Tile, ROWS>(x, w, bias, y, panels, x.cols * 2, AHEAD_FROM);
}

}  // namespace ridgeline::RL_ISA
