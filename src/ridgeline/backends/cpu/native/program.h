// A program as the native loop holds it: decoded once from the flat record that record.py writes.
//
// The record is little-endian int64 words, versioned. Decoding checks every count, kind, index and extent, so
// that running needs no checks but those on the batch. Nothing here runs anything.
#pragma once

#include <stdint.h>

#include <vector>

#include "kernels.h"
#include "memory.h"
#include "pack.h"

namespace ridgeline {

constexpr int64_t RECORD_MAGIC = 0x4352'4c52;  // "RLRC"
constexpr int64_t RECORD_VERSION = 3;
constexpr int32_t WANT_HOLD = 16;           // of a row's `want`: keep it for a later step
constexpr int32_t WANT_SAMPLE = 1 | 2 | 8;  // ids, logprobs or logits
constexpr int64_t BATCH_MAGIC = 0x4742'4c52, BATCH_VERSION = 1, BATCH_HEADER = 16;

// Places of a batch's actual sizes in its header; also how buffers and fields name their row axis.
enum Axis : int64_t {
  AXIS_CONSTANT = 0,
  AXIS_T = 4,
  AXIS_R = 5,
  AXIS_L = 6,
  AXIS_C = 7,
  AXIS_E = 8,
  AXIS_H = 9,
  AXIS_M = 10
};

enum class Kind : int64_t { none, buffer, weight, vector, field, state, held };

enum class Type : int64_t { f32, i8g32, i32, bf16, i8, i8g64, i8g128, i8g32x2 };

static constexpr bool is_int8(Type t) {
  return t == Type::i8g32 || t == Type::i8 || t == Type::i8g64 || t == Type::i8g128 || t == Type::i8g32x2;
}

// Int8 rows of which a row is the sum.
static constexpr int64_t terms_of(Type t) {
  return t == Type::i8g32x2 ? 2 : 1;
}

// Columns that share a scale; 0 where a row has one.
static constexpr int64_t group_of(Type t) {
  return t == Type::i8g32 || t == Type::i8g32x2 ? 32 : t == Type::i8g64 ? 64 : t == Type::i8g128 ? 128 : 0;
}

struct Operand {
  Kind kind;
  int64_t index, start, stop;  // columns start..stop of a buffer
};

struct Buffer {
  int64_t offset, axis, rows, cols;  // rows at capacity
  Type type;
  bool own;                     // in a step of one row every thread computes it for itself
  int64_t padded_cols() const;  // of int8 rows: to whole groups, or to 32
  int64_t row_bytes() const;
  int64_t end() const { return offset + rows * row_bytes(); }
};

struct Field {
  int64_t offset, outer, inner, item_bytes;  // [outer][inner] at capacity
};

struct State {
  KVFormat format;
  int64_t n_kv_heads, head_dim, group, layer;
};

struct OpEntry;

struct Instr {
  const OpEntry* op;
  std::vector<Operand> operands;
  std::vector<int64_t> outputs;  // buffers
  std::vector<int64_t> ints;
  std::vector<double> floats;
  int64_t section;               // light instructions from here to the next barrier; at least 1
  bool barrier, barrier_single;  // threads meet before it; the same in a step of one row
  bool check;  // has batch values of its own to check, which no earlier instruction's check covers
};

// A vector parameter; the caller of Step keeps it alive.
struct Vector {
  const float* data;
  int64_t size;
};

struct Program {
  int64_t arena_bytes, pages, page_bytes, layers, held_rows, held_cols, batch_bytes;
  int64_t capacity[BATCH_HEADER];  // by Axis
  std::vector<Buffer> buffers;
  std::vector<Field> fields;
  std::vector<State> states;
  std::vector<Instr> instrs;
  int64_t kept, hold_slot, want;  // buffer and fields of rows held for a later step; -1: none
  int64_t sample;                 // the first instruction that only sampled rows need
  int64_t copies;                 // field of slot copies, -1: none
};

// Throws std::invalid_argument, saying what is wrong, for a record this version cannot run.
Program decode(const int64_t* words, int64_t count, const std::vector<const Weight*>& weights,
               const std::vector<Vector>& vectors);

}  // namespace ridgeline
