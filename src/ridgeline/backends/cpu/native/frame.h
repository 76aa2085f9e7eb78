// What one thread sees while it runs an instruction: the program, the batch, its place in the team; and
// operands as views cut to the actual sizes of the step.
#pragma once

#include "pool.h"
#include "program.h"
#include "shares.h"

namespace ridgeline {

struct Frame {
  const Program& program;
  const Kernels& kernels;
  const std::vector<const Weight*>& weights;
  const std::vector<Vector>& vectors;
  uint8_t *arena, *kv;
  Span block;    // of a section's rows, or empty: all that are this thread's
  uint8_t* own;  // in a step of one row, this thread's own arena; else null
  float* held;
  const uint8_t* batch;
  uint8_t* scratch;  // this thread's own, among those of all threads
  int64_t scratch_bytes;
  Piece* pieces;  // of all rows of logits
  Barrier& barrier;
  Shares& shares;
  int thread, threads;

  int64_t size(int64_t axis) const { return ((const int64_t*)batch)[axis]; }

  int64_t rows_of(const Buffer& b) const { return b.axis == AXIS_CONSTANT ? b.rows : size(b.axis); }

  // This thread's share of n panels, layers or the like.
  Span mine(int64_t n) const { return share(n, thread, threads); }

  // The rows of an instruction's outputs that this thread computes: its share, or all if it keeps them to
  // itself.
  Span rows(const Instr& i) const {
    const Buffer& out = program.buffers[i.outputs[0]];
    if (block.begin < block.end) return block;
    return own && out.own ? Span{0, rows_of(out)} : mine(rows_of(out));
  }

  uint8_t* at(const Buffer& b) const { return (own && b.own ? own : arena) + b.offset; }

  bool has(const Operand& x) const { return x.kind != Kind::none; }

  View view(const Operand& x) const {
    const Buffer& b = program.buffers[x.index];
    return {(float*)at(b) + x.start, b.cols, rows_of(b), x.stop - x.start};
  }

  QuantizedView quantized(const Operand& x) const {
    const Buffer& b = program.buffers[x.index];
    const int64_t group = group_of(b.type), padded = b.padded_cols();
    return {at(b), b.row_bytes(), rows_of(b), padded, group ? padded / group : 1, group, terms_of(b.type)};
  }

  Bf16View bf16(const Operand& x) const {
    const Buffer& b = program.buffers[x.index];
    return {(uint16_t*)at(b), b.row_bytes() / 2, rows_of(b), b.cols};
  }

  View output(const Instr& i, int at) const { return view({Kind::buffer, i.outputs[at], 0, columns(i, at)}); }

  QuantizedView quantized_output(const Instr& i, int at) const {
    return quantized({Kind::buffer, i.outputs[at], 0, columns(i, at)});
  }

  Bf16View bf16_output(const Instr& i, int at) const {
    return bf16({Kind::buffer, i.outputs[at], 0, columns(i, at)});
  }

  int64_t columns(const Instr& i, int at) const { return program.buffers[i.outputs[at]].cols; }

  const Weight& weight(const Operand& x) const { return *weights[x.index]; }

  const float* vector(const Operand& x) const { return has(x) ? vectors[x.index].data : nullptr; }

  // Null for a missing operand and for a field without room.
  template <class T>
  const T* field(const Operand& x) const {
    return has(x) ? field_at<T>(x.index) : nullptr;
  }

  template <class T>
  const T* field_at(int64_t index) const {
    const Field& f = program.fields[index];
    return f.outer > 0 && f.inner > 0 ? (const T*)(batch + f.offset) : nullptr;
  }

  KVView pages(const State& s) const {
    uint8_t* data = kv + s.layer * PAGE_RUN * program.page_bytes;
    return {data, s.format, program.layers * PAGE_RUN * program.page_bytes, s.n_kv_heads, s.head_dim};
  }
};

// An op of the loop: its record signature and its functions.
struct OpEntry {
  const char* name;      // of the op set; "linear_i8" is linear over int8 rows
  const char* names;     // of the operands, separated by spaces; what is not named the loop does not have
  const char* operands;  // a float rows, q int8 rows, b bf16 rows, w packed weight, v vector, f field, s
                         // state, h held rows; upper case: may be missing
  const char* fields;  // what each field operand must hold: r 4 bytes a row, s a Sampler a row, x as r but at
                       // row `axis` of [axes][rows], E H M 4 bytes per unit of that axis, . 4-byte items of
                       // any extent, which `check` looks at
  const char* outputs;  // a, q, b as above, i int32
  const char* ints;     // attribute names, separated by spaces
  const char* floats;
  bool rows_in, rows_out;  // a thread reads / writes only its share of the rows before any barrier of its own
  bool light;              // cheap enough for every thread to do by itself what a single row needs
  void (*run)(const Instr&, const Frame&);
  void (*check)(const Instr&, const Frame&);  // of batch values; throws std::invalid_argument; may be null
};

extern const OpEntry OPS[];
extern const int OP_COUNT;

}  // namespace ridgeline
