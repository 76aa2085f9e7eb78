// Panels that were packed before: read from a file by all threads, and summed so that damage is seen.
#pragma once

#include <stdint.h>

#include <vector>

#include "pool.h"

namespace ridgeline {

// A weight's panels, by their place in memory.
struct Stored {
  int64_t offset, bytes, panel_bytes;  // bytes: a multiple of panel_bytes, which is one of 8
};

// The sum of each weight: sum of w[i] * (2 i + 1) over its 64-bit words, so that threads may share the work.
// Any change of one word shows.
std::vector<uint64_t> checksums(Pool& pool, const uint8_t* memory, const std::vector<Stored>& weights);

// Reads every weight from offset `start` + its own of the file `fd` into `memory`, and sums it. Each thread
// reads the panels that it will use, so it also touches them first. Throws std::runtime_error where the file
// ends early or cannot be read.
std::vector<uint64_t> read_panels(Pool& pool, int fd, int64_t start, uint8_t* memory,
                                  const std::vector<Stored>& weights);

}  // namespace ridgeline
