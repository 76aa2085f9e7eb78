// Where a block of a file's row goes in a panel, and the packers of the 256-weight blocks.
#pragma once

#include <string.h>

#include "weights.h"

namespace ridgeline {

// The first unit of a block's weights, its part of the panel's tail, and the row 0..31.
struct Place {
  uint8_t *unit, *tail;
  int64_t row;
};

static inline uint32_t word_at(const uint8_t* p) {
  uint32_t w;
  memcpy(&w, p, 4);
  return w;
}

// Writes 4 consecutive k of row r into byte vector `step` of a unit.
static inline void put_quad(uint8_t* unit, int64_t step, int64_t r, uint32_t codes) {
  memcpy(unit + step * PANEL * 4 + r * 4, &codes, 4);
}

// Codes of one unit, a byte each and in the order of k.
static inline void put_codes(const Layout& l, const uint8_t* codes, uint8_t* unit, int64_t r) {
  if (l.bits == 8)
    for (int64_t j = 0; j < l.unit() / 4; j++) put_quad(unit, j, r, word_at(codes + 4 * j));
  else
    for (int64_t j = 0; j < l.unit() / 8; j++)
      put_quad(unit, j, r, word_at(codes + 8 * j) | word_at(codes + 8 * j + 4) << 4);
}

// What a nibble of the IQ4 formats stands for.
constexpr int8_t IQ4_VALUES[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

void pack_q2_k(const Layout& l, const uint8_t* block, const Place& at);
void pack_q3_k(const Layout& l, const uint8_t* block, const Place& at);
void pack_q4_k(const Layout& l, const uint8_t* block, const Place& at);
void pack_q5_k(const Layout& l, const uint8_t* block, const Place& at);
void pack_q6_k(const Layout& l, const uint8_t* block, const Place& at);
void pack_iq4_xs(const Layout& l, const uint8_t* block, const Place& at);

}  // namespace ridgeline
