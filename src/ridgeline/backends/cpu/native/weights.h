// Packed weights: panels of 32 output rows, K outermost, so that a panel is one contiguous stream of units
// and, for some formats, a tail. docs/kernels.md shows each layout as a picture.
//
//   f32   unit = 1 k:  32 floats
//   bf16  unit = 2 k:  2 vectors of [16 rows][2 k]
//   8 bit unit = max(32, group) k: for each 4 k, 2 vectors of [16 rows][4 k] codes
//   4 bit the same for each 8 k: in a byte the low nibble is k step 2j, the high one step 2j + 1
//
// After the codes of a unit come its scales, by `Scales`. A weight is (code - zero) * scale [+ minimum].
// Rows are padded to 32 with zeros, K to whole units. Packing is lossless.
#pragma once

#include <stdint.h>

namespace ridgeline {

constexpr int64_t GROUP = 32;   // of int8 activations where nothing else is said, and the least unit of codes
constexpr int64_t PANEL = 32;   // output rows of a panel
constexpr int64_t SUPER = 256;  // k that share the scales of a super format

enum class Scales {
  none,      // floats
  half,      // per group: 32 halfs
  half_min,  // per group: 32 halfs, then 32 half minima
  channel,   // none; the panel's tail is a float for each row
  super,     // per group: 32 bytes s; the tail has 32 halfs d for each 256 k; scale = d * (s - 128)
  super_min  // per group: 32 bytes s, 32 bytes m; the tail 32 halfs d, 32 halfs e; scale = d * s, minimum =
             // -e * m
};

struct Layout {
  int64_t bits, group, zero;
  Scales scales;

  constexpr int64_t unit() const { return bits > 8 ? 32 / bits : group < GROUP ? GROUP : group; }  // k
  constexpr int64_t code_bytes() const { return PANEL * unit() * bits / 8; }
  constexpr int64_t group_scale_bytes() const {
    switch (scales) {
      case Scales::half:
      case Scales::super_min:
        return PANEL * 2;
      case Scales::half_min:
        return PANEL * 4;
      case Scales::super:
        return PANEL;
      default:
        return 0;
    }
  }
  constexpr int64_t unit_bytes() const {
    return code_bytes() + (bits > 8 ? 0 : unit() / group * group_scale_bytes());
  }
  // For each 256 k of a super format; else for the whole panel.
  constexpr int64_t tail_bytes() const {
    return scales == Scales::channel || scales == Scales::super_min ? PANEL * 4
           : scales == Scales::super                                ? PANEL * 2
                                                                    : 0;
  }
  constexpr bool is_super() const { return scales == Scales::super || scales == Scales::super_min; }
  constexpr bool has_minima() const { return scales == Scales::half_min || scales == Scales::super_min; }
  constexpr bool is_float() const { return bits > 8; }
};

enum class Format : int64_t {
  f32,
  bf16,
  int8,
  int8_g32,
  int8_g128,
  int4_g32,
  int4_g64,
  int4_g128,
  uint4_g32,
  uint4_g64,
  uint4_g128,
  uint8_g32,
  k2,
  k3,
  k4,
  k5,
  k6,
  k8
};

constexpr Layout LAYOUTS[] = {
    {32, 1, 0, Scales::none},       // f32
    {16, 1, 0, Scales::none},       // bf16
    {8, 32, 128, Scales::channel},  // int8
    {8, 32, 128, Scales::half},     // int8_g32
    {8, 128, 128, Scales::half},    // int8_g128
    {4, 32, 8, Scales::half},       // int4_g32
    {4, 64, 8, Scales::half},       // int4_g64
    {4, 128, 8, Scales::half},      // int4_g128
    {4, 32, 0, Scales::half_min},   // uint4_g32
    {4, 64, 0, Scales::half_min},   // uint4_g64
    {4, 128, 0, Scales::half_min},  // uint4_g128
    {8, 32, 0, Scales::half_min},   // uint8_g32
    {4, 16, 0, Scales::super_min},  // k2
    {4, 16, 4, Scales::super},      // k3
    {4, 32, 0, Scales::super_min},  // k4
    {8, 32, 0, Scales::super_min},  // k5
    {8, 16, 128, Scales::super},    // k6
    {8, 32, 128, Scales::super},    // k8
};
// Panels are kept on disk between runs: raise this with any change of them, or of what packing writes into
// them.
constexpr int64_t LAYOUT_VERSION = 1;
constexpr int64_t FORMAT_COUNT = sizeof LAYOUTS / sizeof LAYOUTS[0];

static constexpr const Layout& layout(Format f) {
  return LAYOUTS[(int64_t)f];
}

struct Weight {
  const uint8_t* data;
  Format format;
  int64_t rows, cols;
  int64_t panels() const { return (rows + PANEL - 1) / PANEL; }
  int64_t units() const { return (cols + layout(format).unit() - 1) / layout(format).unit(); }
  int64_t panel_bytes() const {
    const Layout& l = layout(format);
    return units() * l.unit_bytes() + l.tail_bytes() * (l.is_super() ? (cols + SUPER - 1) / SUPER : 1);
  }
  int64_t bytes() const { return panels() * panel_bytes(); }
  // Of one row, without what pads K.
  int64_t row_bytes() const {
    const Layout& l = layout(format);
    return cols * l.bits / 8 + cols / l.group * l.group_scale_bytes() / PANEL +
           l.tail_bytes() / PANEL * (l.is_super() ? cols / SUPER : 1);
  }
  const uint8_t* panel(int64_t p) const { return data + p * panel_bytes(); }
};

}  // namespace ridgeline
