// Packed weights: panels of 32 output rows, K outermost, so that a panel is one contiguous stream.
//
//   f32   per k:           32 floats
//   bf16  per pair of k:   2 vectors of [16 rows][2 k]
//   q8    per 32 k:        8 x 2 vectors of [16 rows][4 k] bytes (q + 128), then 32 half scales
//   q4    per 32 k:        4 x 2 vectors of [16 rows][4 k] nibbles (low: k step 2j, high: 2j + 1),
//                          then 32 half scales and 32 half minima; value = scale * nibble + minimum
//
// Rows are padded to 32 with zeros, K to 2 for bf16. Packing is lossless.
#pragma once

#include <stdint.h>

namespace ridgeline {

constexpr int64_t GROUP = 32;  // weights that share a scale
constexpr int64_t PANEL = 32;  // output rows of a panel

enum class Format : int64_t { f32 = 0, bf16 = 1, q8 = 2, q4 = 3 };

struct Layout {
  int64_t step;        // k covered by one unit
  int64_t unit_bytes;  // bytes of one unit of a panel
};

static constexpr Layout layout(Format f) {
  switch (f) {
    case Format::f32:
      return {1, PANEL * 4};
    case Format::bf16:
      return {2, PANEL * 4};
    case Format::q8:
      return {GROUP, PANEL * (GROUP + 2)};
    case Format::q4:
      return {GROUP, PANEL * (GROUP / 2 + 4)};
  }
  __builtin_unreachable();
}

struct Weight {
  const uint8_t* data;
  Format format;
  int64_t rows, cols;
  int64_t panels() const { return (rows + PANEL - 1) / PANEL; }
  int64_t units() const { return (cols + layout(format).step - 1) / layout(format).step; }
  int64_t panel_bytes() const { return units() * layout(format).unit_bytes; }
  int64_t bytes() const { return panels() * panel_bytes(); }
  const uint8_t* panel(int64_t p) const { return data + p * panel_bytes(); }
};

}  // namespace ridgeline
