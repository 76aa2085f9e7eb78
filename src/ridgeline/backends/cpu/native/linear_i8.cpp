// y = x W^T for int8 activations over int8 and int4 weights.
//
// Dot products within a group are exact in int32, so only groups have an order: ascending,
//   sum = fma(float(dot) * x_scale, w_scale, sum)
//   sum = fma(x_scale * float(x_sum), w_minimum, sum)   where the format has minima
// A format with one scale per row takes it last; if the activations have one per row too, all is exact but
// the last two products.
#include "formats.h"
#include "kernels.h"
#include "simd.h"
#include "tiles.h"

namespace ridgeline::RL_ISA {
namespace {

constexpr int CHANNEL_ROWS = 2 * TILE_ROWS;  // rows of a tile that holds no float sums

// Of one that does. Small groups of 4 bits hold scales and halves of codes besides; in 16 bits their sums
// leave room.
static constexpr int group_rows(Layout l) {
  if (RL_BYTES == 32 && l.bits == 4) return 3;
  return TILE_ROWS > 2 && l.bits == 4 && l.group <= GROUP ? TILE_ROWS - 1 : TILE_ROWS;
}

// Whether codes are multiplied less their zero point, which takes the fewest instructions where products of
// signed bytes by unsigned ones are added up in 16 bits: 128 * 127 * 2 fits.
static constexpr bool centred(Layout l) {
  return RL_BYTES == 32 && l.bits == 8 && l.zero == 128;
}

template <int M>
using Dots = i32x16[M][2];

// dots += codes of `steps` times 4 k, against the rows of x from byte 0 on.
template <int BITS, int M>
RL_INLINE void multiply(Dots<M>& dots, const uint8_t* codes, const RowPointers<M>& x, int steps) {
  if constexpr (BITS == 8) {
    RL_UNROLL_8 for (int j = 0; j < steps; j++) {
      u32x16 w[2];
      RL_FOR (v, 2) w[v] = load_bits(codes + (2 * j + v) * 64);
      RL_FOR (m, M) {
        const int32_t four = RowPointers<M>::template read<int32_t>(x, m, j);
        RL_FOR (v, 2) dots[m][v] = dot4(dots[m][v], w[v], four);
      }
    }
  } else {
    RL_UNROLL_4 for (int j = 0; j < steps / 2; j++) {
      u32x16 low[2], high[2];
      RL_FOR (v, 2) {
        const u32x16 w = load_bits(codes + (2 * j + v) * 64);
        low[v] = w & 0x0f0f0f0fu;
        high[v] = (w >> 4u) & 0x0f0f0f0fu;
      }
      RL_FOR (m, M) {
        const int32_t four = RowPointers<M>::template read<int32_t>(x, m, 2 * j);
        RL_FOR (v, 2) dots[m][v] = dot4(dots[m][v], low[v], four);
      }
      RL_FOR (m, M) {
        const int32_t four = RowPointers<M>::template read<int32_t>(x, m, 2 * j + 1);
        RL_FOR (v, 2) dots[m][v] = dot4(dots[m][v], high[v], four);
      }
    }
  }
}

#if RL_BYTES == 32
// The same for 4 bits where no instruction adds four products up in 32 bits: in 16 bits, while they fit.
template <int M>
RL_INLINE void multiply_short(Dots<M>& dots, const uint8_t* codes, const RowPointers<M>& x, int steps) {
  constexpr int MOST = SHORT_STEPS / 2;
  for (int first = 0; first < steps / 2; first += MOST) {
    const int end = first + MOST < steps / 2 ? first + MOST : steps / 2;
    i16x32 sums[M][2] = {};
    RL_UNROLL_4 for (int j = first; j < end; j++) {
      RL_FOR (v, 2) {
        const u32x16 w = load_bits(codes + (2 * j + v) * 64);
        const u32x16 low = w & 0x0f0f0f0fu, high = (w >> 4u) & 0x0f0f0f0fu;
        RL_FOR (m, M) {
          sums[m][v] = dot2(sums[m][v], low, RowPointers<M>::template read<int32_t>(x, m, 2 * j));
          sums[m][v] = dot2(sums[m][v], high, RowPointers<M>::template read<int32_t>(x, m, 2 * j + 1));
        }
      }
    }
    RL_FOR (m, M)
      RL_FOR (v, 2) dots[m][v] = add_pairs(dots[m][v], sums[m][v]);
  }
}

// And for codes that are `centred`, less the 128.
template <int M>
RL_INLINE void multiply_centred(Dots<M>& dots, const uint8_t* codes, const RowPointers<M>& x, int steps) {
  RL_UNROLL_8 for (int j = 0; j < steps; j++) {
    RL_FOR (v, 2) {
      const u32x16 w = load_bits(codes + (2 * j + v) * 64) ^ 0x80808080u, size = magnitude(w);
      RL_FOR (m, M) {
        const int32_t four = RowPointers<M>::template read<int32_t>(x, m, j);
        dots[m][v] = dot4_centred(dots[m][v], w, size, four);
      }
    }
  }
}
#endif

// One row has too few sums to hide the latency of a dot product: it keeps odd steps apart. Codes are read
// strictly in the order of their addresses, or the memory's prefetchers lose them.
template <int BITS>
RL_INLINE void multiply_one(Dots<1>& dots, const uint8_t* codes, const RowPointers<1>& x, int steps) {
  i32x16 odd[2] = {};
  RL_UNROLL_4 for (int j = 0; j < steps / 2; j++) {
    const int32_t even_x = RowPointers<1>::read<int32_t>(x, 0, 2 * j);
    const int32_t odd_x = RowPointers<1>::read<int32_t>(x, 0, 2 * j + 1);
    if constexpr (BITS == 8) {
      RL_FOR (v, 2) dots[0][v] = dot4(dots[0][v], load_bits(codes + (4 * j + v) * 64), even_x);
      RL_FOR (v, 2) odd[v] = dot4(odd[v], load_bits(codes + (4 * j + 2 + v) * 64), odd_x);
    } else {
      RL_FOR (v, 2) {
        const u32x16 w = load_bits(codes + (2 * j + v) * 64);
        dots[0][v] = dot4(dots[0][v], w & 0x0f0f0f0fu, even_x);
        odd[v] = dot4(odd[v], (w >> 4u) & 0x0f0f0f0fu, odd_x);
      }
    }
  }
  RL_FOR (v, 2) dots[0][v] = dots[0][v] + odd[v];
}

template <Format F, int M>
RL_INLINE void dot_group(Dots<M>& dots, const uint8_t* codes, const RowPointers<M>& x, int steps) {
  constexpr Layout l = layout(F);
#if RL_BYTES == 32
  if constexpr (l.bits == 4) return multiply_short<M>(dots, codes, x, steps);
  if constexpr (centred(l)) return multiply_centred<M>(dots, codes, x, steps);
#endif
  if constexpr (M == 1)
    multiply_one<l.bits>(dots, codes, x, steps);
  else
    multiply<l.bits, M>(dots, codes, x, steps);
}

// `times` the sum of a group's activations in row m, for the codes' zero point or a minimum. It is stored
// where the group is that of the activations, else added up here, exactly too.
template <Format F, int M>
RL_INLINE i32x16 total_of(const RowPointers<M>& q, const RowPointers<M>& totals, int m, int64_t u, int64_t g,
                          int32_t times) {
  constexpr Layout l = layout(F);
  if constexpr (l.group == l.unit()) {
    return splat(RowPointers<M>::template read<int32_t>(totals, m, u) * times);
  } else {
    i32x16 total = {};
    const u32x16 ones = as_u32(splat(int32_t(0x01010101)));
    for (int64_t j = 0; j < l.group / 4; j++)
      total = dot4(total, ones, RowPointers<M>::template read<int32_t>(q, m, g * (l.group / 4) + j));
    return total * times;
  }
}

// One group of a unit: integer dot products, added up over a row's terms, then scales and minima in floats.
template <Format F, int TERMS, int ROWS, int M>
RL_INLINE void add_group(f32x16 (&sums)[ROWS][2], const uint8_t* unit, const uint8_t* tail,
                         const RowPointers<M>& q, const RowPointers<M>& scales, const RowPointers<M>& totals,
                         int64_t u, int64_t g) {
  static_assert(M == ROWS * TERMS, "a row of pointers for each term");
  constexpr Layout l = layout(F);
  typedef RowPointers<M> Rows;
  Dots<M> dots;
  RL_FOR (m, M) {
    const i32x16 start =
        l.zero && !centred(l) ? total_of<F, M>(q, totals, m, u, g, -(int32_t)l.zero) : i32x16{};
    RL_FOR (v, 2) dots[m][v] = start;
  }
  Rows at = q;
  Rows::advance(at, g * l.group);
  dot_group<F, M>(dots, unit + g * (PANEL * l.group * l.bits / 8), at, l.group / 4);
  const uint8_t* behind = unit + l.code_bytes() + g * l.group_scale_bytes();
  RL_FOR (v, 2) {
    f32x16 scale = {}, minimum = {};
    if constexpr (l.scales != Scales::channel) scale = scales_of<F>(behind, tail, v);
    if constexpr (l.has_minima()) minimum = minima_of<F>(behind, tail, v);
    RL_FOR (m, ROWS) {
      constexpr int LAST = TERMS - 1;
      i32x16 both = dots[m * TERMS + LAST][v];
      if constexpr (TERMS == 2) both = both + dots[m * TERMS][v] * TERM_RATIO;
      const f32x16 dot = to_f32(both),
                   x_scale = splat(Rows::template read<float>(scales, m * TERMS + LAST, u));
      if constexpr (l.scales == Scales::channel)
        sums[m][v] = fma(dot, x_scale, sums[m][v]);
      else
        sums[m][v] = fma(dot * x_scale, scale, sums[m][v]);
      if constexpr (l.has_minima()) {
        i32x16 total = total_of<F, M>(q, totals, m * TERMS + LAST, u, g, 1);
        if constexpr (TERMS == 2) total = total + total_of<F, M>(q, totals, m * TERMS, u, g, TERM_RATIO);
        sums[m][v] = fma(to_f32(total) * x_scale, minimum, sums[m][v]);
      }
    }
  }
}

// Activations with a scale for each unit of the weight; of two terms, each is a row of its own to the dot
// products.
template <Format F, int TERMS>
struct GroupTile {
  template <int ROWS>
  static void run(const QuantizedView& x, int64_t row, const Panel& w, const float* bias, const View& y) {
    constexpr Layout l = layout(F);
    constexpr int M = ROWS * TERMS;
    typedef RowPointers<M> Rows;
    const uint8_t *at = w.units, *tail = at + w.count * l.unit_bytes();
    int64_t wait = w.turn;
    const int64_t stride = x.stride / TERMS;
    Rows q = Rows::at(x.q(row), stride), scales = Rows::at(x.scale(row), stride),
         totals = Rows::at(x.sum(row), stride);
    fetch_tile<ROWS>(y, w.index, row);
    f32x16 sums[ROWS][2] = {};
    for (int64_t u = 0; u < w.count; u++, at += l.unit_bytes()) {
      Panel::fetch(w, at, l.unit_bytes(), wait);
      for (int64_t g = 0; g < l.unit() / l.group; g++)
        add_group<F, TERMS, ROWS, M>(sums, at, tail, q, scales, totals, u, g);
      Rows::advance(q, l.unit());
      if (l.is_super() && u % (SUPER / l.unit()) == SUPER / l.unit() - 1) tail += l.tail_bytes();
    }
    if constexpr (l.scales == Scales::channel)
      RL_FOR (v, 2)
        RL_FOR (m, ROWS) sums[m][v] = sums[m][v] * scales_of<F>(nullptr, tail, v);
    store_tile(sums, bias, y, w.index, row);
  }
};

// Activations with one scale per row over weights with one scale per row: integers to the end.
template <Format F>
struct ChannelTile {
  template <int M>
  static void run(const QuantizedView& x, int64_t row, const Panel& w, const float* bias, const View& y) {
    constexpr Layout l = layout(F);
    typedef RowPointers<M> Rows;
    const uint8_t* at = w.units;
    int64_t wait = w.turn;
    Rows q = Rows::at(x.q(row), x.stride);
    fetch_tile<M>(y, w.index, row);
    Dots<M> dots;
    RL_FOR (m, M)
      RL_FOR (v, 2) dots[m][v] = splat(centred(l) ? 0 : x.sum(row + m)[0] * -(int32_t)l.zero);
    for (int64_t u = 0; u < w.count; u++, at += l.unit_bytes()) {
      Panel::fetch(w, at, l.unit_bytes(), wait);
      dot_group<F, M>(dots, at, q, l.unit() / 4);
      Rows::advance(q, l.unit());
    }
    f32x16 sums[M][2];
    RL_FOR (v, 2) {
      const f32x16 scale = scales_of<F>(nullptr, at, v);
      RL_FOR (m, M) sums[m][v] = to_f32(dots[m][v]) * splat(x.scale(row + m)[0]) * scale;
    }
    store_tile(sums, bias, y, w.index, row);
  }
};

template <Format F>
struct Linear {
  static void run(const QuantizedView& x, const Weight& w, const float* bias, const View& y, Span panels) {
    constexpr Layout l = layout(F);
    if constexpr (!l.is_float()) {
      constexpr int64_t ahead_from = l.bits == 4 ? 4 : 8;
      if constexpr (l.scales == Scales::channel)
        if (x.group == 0)
          return for_tiles<ChannelTile<F>, CHANNEL_ROWS>(x, w, bias, y, panels, x.stride, ahead_from);
      if constexpr (l.group <= GROUP)
        if (x.terms == 2)
          return for_tiles<GroupTile<F, 2>, TILE_ROWS / 2>(x, w, bias, y, panels, x.stride, ahead_from / 2);
      for_tiles<GroupTile<F, 1>, group_rows(l)>(x, w, bias, y, panels, x.stride, ahead_from);
    }
  }
};

}  // namespace

void linear_i8(const QuantizedView& x, const Weight& w, const float* bias, const View& y, Span panels) {
  with_format<Linear>(w.format, x, w, bias, y, panels);
}

}  // namespace ridgeline::RL_ISA
