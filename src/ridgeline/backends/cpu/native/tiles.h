// How a linear is cut into register tiles, and how a tile is stored. Shared by the float and
// the int8 kernels.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace ridgeline::RL_ISA {

// Writes M rows of sums (plus bias) to y from column panel * 32, cutting off padded rows of W.
template <int M>
RL_INLINE void store_tile(const f32x16 (&sums)[M][2], const float* bias, const View& y, int64_t panel,
                          int64_t row) {
  RL_FOR (v, 2) {
    const int64_t col = panel * PANEL + v * LANES, n = y.cols - col;
    if (n <= 0) return;
    const f32x16 b = !bias ? f32x16{} : n >= LANES ? load(bias + col) : load_part(bias + col, n);
    RL_FOR (m, M) {
      const f32x16 out = bias ? sums[m][v] + b : sums[m][v];
      if (n >= LANES)
        store(y.row(row + m) + col, out);
      else
        store_part(y.row(row + m) + col, out, n);
    }
  }
}

// Runs the tile of m rows (1 <= m <= M).
template <class Tile, int M, class X>
RL_INLINE void run_tile(int64_t m, const X& x, const Weight& w, const float* bias, const View& y,
                        int64_t panel, int64_t row) {
  if (m == M) return Tile::template run<M>(x, w, bias, y, panel, row);
  if constexpr (M > 1) run_tile<Tile, M - 1>(m, x, w, bias, y, panel, row);
}

// All rows of x against the panels of one thread. Row blocks are balanced (16 = 5 + 5 + 6), and run inside a
// panel, which stays in cache meanwhile.
template <class Tile, class X>
RL_INLINE void for_tiles(const X& x, const Weight& w, const float* bias, const View& y, Span panels) {
  const int64_t blocks = (x.rows + TILE_ROWS - 1) / TILE_ROWS;
  for (int64_t p = panels.begin; p < panels.end; p++)
    for (int64_t b = 0; b < blocks; b++) {
      const int64_t row = x.rows * b / blocks, end = x.rows * (b + 1) / blocks;
      run_tile<Tile, TILE_ROWS>(end - row, x, w, bias, y, p, row);
    }
}

}  // namespace ridgeline::RL_ISA
