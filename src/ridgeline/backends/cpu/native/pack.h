// Packing weights from the block layouts of files into panels, and reading single rows back.
#pragma once

#include "memory.h"
#include "pool.h"
#include "weights.h"

namespace ridgeline {

// A weight and the memory it lives in.
class PackedWeight {
 public:
  // `raw` is [rows][row bytes] in the file's layout: "f32", "f16", "bf16", "q4_0", "q4_1" or "q8_0". Throws
  // std::invalid_argument for another format, a size that does not fit, or a value the panel cannot hold.
  PackedWeight(Pool& pool, const char* format, const uint8_t* raw, size_t raw_bytes, int64_t rows, int64_t cols);

  const Weight& weight() const { return weight_; }

 private:
  Weight weight_;
  HugeMemory memory_;
};

// Row `row` of w as floats [cols].
void unpack_row(const Weight& w, int64_t row, float* out);

}  // namespace ridgeline
