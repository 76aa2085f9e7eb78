// From a weight's format, known at run time, to a kernel instantiated for it.
#pragma once

#include "weights.h"

namespace ridgeline::RL_ISA {

// Calls Run<F>::run(args...) for the F that equals `format`.
template <template <Format> class Run, int64_t F = 0, class... Args>
static inline void with_format(Format format, const Args&... args) {
  if ((int64_t)format == F) return Run<(Format)F>::run(args...);
  if constexpr (F + 1 < FORMAT_COUNT) with_format<Run, F + 1>(format, args...);
}

}  // namespace ridgeline::RL_ISA
