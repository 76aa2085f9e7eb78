// From a weight's format, known at run time, to a kernel instantiated for it.
#pragma once

#include "simd.h"
#include "weights.h"

namespace ridgeline::RL_ISA {

// The scales of a group for the 16 weight rows `v` of a panel: `behind` are the bytes of the group's own
// scales, `tail` the unit's part of the panel's tail.
template <Format F>
RL_INLINE f32x16 scales_of(const uint8_t* behind, const uint8_t* tail, int v) {
  constexpr Layout l = layout(F);
  if constexpr (l.scales == Scales::channel) return load((const float*)(tail + v * 64));
  if constexpr (l.scales == Scales::super)
    return load_f16(tail + v * 32) * (load_u8(behind + v * 16) - 128.0f);
  if constexpr (l.scales == Scales::super_min) return load_f16(tail + v * 32) * load_u8(behind + v * 16);
  return load_f16(behind + v * 32);
}

// And the minima of a format that has them.
template <Format F>
RL_INLINE f32x16 minima_of(const uint8_t* behind, const uint8_t* tail, int v) {
  if constexpr (layout(F).scales == Scales::super_min)
    return -(load_f16(tail + PANEL * 2 + v * 32) * load_u8(behind + PANEL + v * 16));
  return load_f16(behind + PANEL * 2 + v * 32);
}

// Calls Run<F>::run(args...) for the F that equals `format`.
template <template <Format> class Run, int64_t F = 0, class... Args>
static inline void with_format(Format format, const Args&... args) {
  if ((int64_t)format == F) return Run<(Format)F>::run(args...);
  if constexpr (F + 1 < FORMAT_COUNT) with_format<Run, F + 1>(format, args...);
}

}  // namespace ridgeline::RL_ISA
