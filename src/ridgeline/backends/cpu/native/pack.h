// Packing weights from the block layouts of files into panels, and reading single rows back.
#pragma once

#include "pool.h"
#include "weights.h"

namespace ridgeline {

// Formats are the file's names: "f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q8_0" or "iq4_nl". What does
// not fit is refused with std::invalid_argument: another format, sizes that disagree, a value the panel
// cannot hold.

// Bytes of the panels of a weight.
int64_t packed_bytes(const char* format, int64_t rows, int64_t cols);

// Packs `raw` ([rows][row bytes] in the file's layout) into `out`, which holds zeros.
Weight pack(Pool& pool, const char* format, const uint8_t* raw, size_t raw_bytes, int64_t rows, int64_t cols,
            uint8_t* out);

// The weight whose panels `packed_bytes` bytes at `data` already are.
Weight packed(const char* format, const uint8_t* data, int64_t rows, int64_t cols);

// Row `row` of w as floats [cols].
void unpack_row(const Weight& w, int64_t row, float* out);

}  // namespace ridgeline
