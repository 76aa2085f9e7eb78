// How a linear is cut into register tiles, and how a tile is stored. Shared by the kernels of all
// activations.
#pragma once

#include "count.h"
#include "kernels.h"
#include "simd.h"

namespace ridgeline::RL_ISA {

// One panel as a tile sees it. While it computes, the tile fetches its share of the next panel into L2.
struct Panel {
  const uint8_t* units;
  int64_t count;  // of units
  int64_t index;
  int64_t ahead;        // bytes to the next panel; 0: no look ahead
  int64_t turn, turns;  // the tile's, and of all tiles that pass the panel

  // To be called before unit `at` of `bytes` bytes; `wait` counts units to the tile's next turn.
  RL_INLINE void fetch(const Panel& p, const uint8_t* at, int64_t bytes, int64_t& wait) {
    if (p.ahead == 0 || --wait >= 0) return;
    wait = p.turns - 1;
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(at + p.ahead + i, 0, 2);
  }
};

// M rows of activations, `stride` bytes apart. Every third row has a pointer of its own: with the index
// scales of x86 addresses all rows are reached from few registers.
template <int M>
struct RowPointers {
  const uint8_t* base[(M + 2) / 3];
  int64_t stride;

  RL_INLINE RowPointers at(const void* first, int64_t stride) {
    RowPointers p;
    RL_FOR (i, (M + 2) / 3) p.base[i] = (const uint8_t*)first + 3 * i * stride;
    p.stride = stride;
    return p;
  }
  RL_INLINE void advance(RowPointers& p, int64_t bytes) {
    RL_FOR (i, (M + 2) / 3) p.base[i] += bytes;
  }
  template <class T>
  RL_INLINE T read(const RowPointers& p, int m, int64_t i) {
    T x;
    memcpy(&x, p.base[m / 3] + (m % 3) * p.stride + i * (int64_t)sizeof(T), sizeof x);
    return x;
  }
};

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

// Asks for the lines that `store_tile` will write, which arithmetic then hides the way to.
template <int M>
RL_INLINE void fetch_tile(const View& y, int64_t panel, int64_t row) {
  RL_FOR (m, M)
    RL_FOR (v, 2) __builtin_prefetch(y.row(row + m) + panel * PANEL + v * LANES, 1, 3);
}

// Runs the tile of m rows (1 <= m <= M).
template <class Tile, int M, class X>
RL_INLINE void run_tile(int64_t m, const X& x, int64_t row, const Panel& w, const float* bias,
                        const View& y) {
  if (m == M) return Tile::template run<M>(x, row, w, bias, y);
  if constexpr (M > 1) run_tile<Tile, M - 1>(m, x, row, w, bias, y);
}

static inline int64_t terms_of(const QuantizedView& x) {
  return x.terms;
}
template <class X>
static inline int64_t terms_of(const X&) {
  return 1;
}

// Rows [row, end) of x against panel p, as the counting build sees them.
template <class X>
RL_INLINE void count_tile(const X& x, const Weight& w, const float* bias, int64_t p, int64_t row, int64_t end,
                          int64_t row_bytes) {
  const int64_t left = w.rows - p * PANEL, columns = left < PANEL ? left : PANEL;
  count_once(Counted::weights, w.panel(p), columns * w.row_bytes());
  if (bias) count_once(Counted::weights, bias + p * PANEL, columns * 4);
  for (int64_t r = row; r < end; r++) count_once(Counted::acts, x.data + r * x.stride, row_bytes);
  count(Counted::acts, (end - row) * columns * 4);
  count(Counted::macs, terms_of(x) * (end - row) * columns * w.cols);
}

constexpr int64_t PASS_BYTES = 256 << 10;  // of activations, which stay in L2 while all panels pass by

// All rows of x against the panels of one thread, in tiles of up to ROWS rows; `row_bytes` is what a tile
// reads of a row. Row blocks are balanced (16 = 5 + 5 + 6), and run inside a panel, which stays in cache
// meanwhile. From `ahead_from` rows on, arithmetic takes longer than memory, and the next panel is fetched
// meanwhile.
template <class Tile, int ROWS, class X>
RL_INLINE void for_tiles(const X& x, const Weight& w, const float* bias, const View& y, Span panels,
                         int64_t row_bytes, int64_t ahead_from) {
  const int64_t blocks = (x.rows + ROWS - 1) / ROWS, fit = PASS_BYTES / (row_bytes * ROWS) + 1,
                passes = (blocks + fit - 1) / fit;
  const int64_t units = w.units(), panel_bytes = w.panel_bytes();
  for (int64_t pass = 0; pass < passes; pass++) {
    const int64_t first = blocks * pass / passes, end = blocks * (pass + 1) / passes;
    for (int64_t p = panels.begin; p < panels.end; p++) {
      const int64_t ahead = x.rows >= ahead_from && p + 1 < panels.end ? panel_bytes : 0;
      for (int64_t b = first, row = x.rows * b / blocks, next; b < end; b++, row = next) {
        next = x.rows * (b + 1) / blocks;
        const Panel panel{w.data + p * panel_bytes, units, p, ahead, b - first, end - first};
        count_tile(x, w, bias, p, row, next, row_bytes);
        run_tile<Tile, ROWS>(next - row, x, row, panel, bias, y);
      }
    }
  }
}

}  // namespace ridgeline::RL_ISA
