// The counting build (-DRIDGELINE_COUNT): kernels add what their loops move and multiply, and tests hold the
// sums against the cost fold. In any other build these functions are empty.
//
// Counts are logical, without the rows and columns of padding. As the fold's bytes are the compulsory
// traffic, what an instruction touches again - a panel in a second pass over rows, keys for another block of
// rows, a row of activations for the next panel - counts as `again` and not as its kind.
#pragma once

#include <stdint.h>

namespace ridgeline {

enum class Counted { weights, kv_read, kv_written, acts, macs, again };

#ifdef RIDGELINE_COUNT
void counting(const void* instr, const char* op);  // what this thread works on from here on
void count(Counted kind, int64_t n);
void count_once(Counted kind, const void* at, int64_t bytes);
void count_keys(const void* block, int64_t from, int64_t to, int64_t key_bytes);  // keys [from, to) of a page
#else
static inline void counting(const void*, const char*) {}
static inline void count(Counted, int64_t) {}
static inline void count_once(Counted, const void*, int64_t) {}
static inline void count_keys(const void*, int64_t, int64_t, int64_t) {}
#endif

}  // namespace ridgeline
