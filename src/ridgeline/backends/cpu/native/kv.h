// Paged keys and values: formats, the layout of a page, what attention is called with, and its scratch.
//
// The pool is [run of 4 pages][layer][page][kv_head][K block | V block]: a layer's keys are read in address
// order and lie together, yet what a short answer touches fills few huge pages. Blocks hold 64 keys, P
// neighbours of which lie together as dot-product instructions take them (f32: 1, bf16: 2, int8: 4):
//   K [head_dim / P][64 keys][P dims]      V [column group][64 / P][columns][P keys]
// A column group is 64 columns, the last one what is left; head_dim is padded to a multiple of P. int8 keys
// are unsigned (+128), values signed; 64 bf16 scales follow K's bytes and 64 precede V's.
#pragma once

#include <stdint.h>

namespace ridgeline {

enum class KVFormat : int64_t { f32 = 0, bf16 = 1, int8 = 2 };

constexpr int64_t PAGE = 64;            // keys of a page, and of a range
constexpr int64_t PAGE_RUN = 4;         // pages of a layer that lie together
constexpr int64_t COLUMN_GROUP = 64;    // columns of V read together
constexpr int64_t KV_SLACK_BYTES = 64;  // vector loads may run so far past the last page

struct KVView {
  uint8_t* data;  // of the layer's first page
  KVFormat format;
  int64_t run_bytes;  // from one run of pages to the next
  int64_t n_kv_heads, head_dim;

  int64_t packed() const { return format == KVFormat::f32 ? 1 : format == KVFormat::bf16 ? 2 : 4; }
  int64_t element_bytes() const { return 4 / packed(); }
  int64_t padded_dim() const { return (head_dim + packed() - 1) / packed() * packed(); }
  int64_t scale_bytes() const { return format == KVFormat::int8 ? 2 * PAGE : 0; }  // of a block
  int64_t data_bytes() const { return padded_dim() * PAGE * element_bytes(); }
  int64_t block_bytes() const { return data_bytes() + scale_bytes(); }
  int64_t key_bytes() const { return block_bytes() / PAGE; }  // of one head's key, or value
  int64_t page_bytes() const { return n_kv_heads * 2 * block_bytes(); }

  uint8_t* keys(int64_t page, int64_t head) const {
    return data + page / PAGE_RUN * run_bytes + (page % PAGE_RUN * n_kv_heads + head) * 2 * block_bytes();
  }
  uint8_t* key_scales(int64_t page, int64_t head) const { return keys(page, head) + data_bytes(); }
  uint8_t* value_scales(int64_t page, int64_t head) const { return keys(page, head) + block_bytes(); }
  uint8_t* values(int64_t page, int64_t head) const { return value_scales(page, head) + scale_bytes(); }

  // Elements before dimension `dim` of a block's key, or column `dim` of its value.
  int64_t key_at(int64_t key, int64_t dim) const {
    return (dim / packed() * PAGE + key) * packed() + dim % packed();
  }
  int64_t value_at(int64_t key, int64_t dim) const {
    const int64_t group = dim / COLUMN_GROUP * COLUMN_GROUP, left = padded_dim() - group;
    const int64_t columns = left < COLUMN_GROUP ? left : COLUMN_GROUP;
    return group * PAGE + (key / packed() * columns + dim - group) * packed() + key % packed();
  }
};

// Copies `count` consecutive slots of one layer, as if through a temporary.
void copy_slots(const KVView& kv, int64_t source, int64_t target, int64_t count);

constexpr int64_t BLOCK_ROWS = 48;   // query rows of one KV head that share one pass over its keys
constexpr int64_t WIDE_ROWS = 16;    // up to so many rows per KV head, all heads share one pass
constexpr int64_t MOST_SPANS = 16;   // a row's keys are merged in at most so many spans, but for the one
                                     // more that an unaligned start may touch
constexpr int64_t RECORD_HEAD = 32;  // floats of a partial result before its columns

// Floats of a row's partial result: [maximum, padding][weight of 16 lanes][column sums, padded to 16].
static inline int64_t record_floats(int64_t head_dim) {
  return RECORD_HEAD + (head_dim + 15) / 16 * 16;
}

// Places in a thread's scratch.
struct AttentionScratch {
  static constexpr int64_t ROW_BYTES = 128;
  int64_t row_capacity, query_bytes, record_bytes;

  AttentionScratch(int64_t n_kv_heads, int64_t head_dim)
      : row_capacity(n_kv_heads * WIDE_ROWS > BLOCK_ROWS ? n_kv_heads * WIDE_ROWS : BLOCK_ROWS),
        query_bytes((head_dim + 15) / 16 * 64),
        record_bytes(record_floats(head_dim) * 4) {}

  int64_t queries() const { return row_capacity * ROW_BYTES; }
  int64_t records() const { return queries() + row_capacity * query_bytes; }
  int64_t spans() const { return records() + row_capacity * record_bytes; }
  int64_t parts() const { return spans() + row_capacity * record_bytes; }
  int64_t bytes() const { return parts() + (MOST_SPANS + 1) * row_capacity * record_bytes; }
};

}  // namespace ridgeline
