// What kernels work on (views, packed weights, paged keys), and the table of one ISA level's kernels.
//
// Kernels are free functions over a Span: the rows, panels or cost units one thread owns. They
// neither know the pool nor allocate, and a row's result never depends on the span, on the other rows
// or on the thread count.
#pragma once

#include <stdint.h>

#include "kv.h"
#include "weights.h"

namespace ridgeline {

struct Span {
  int64_t begin, end;
};

// Thread `part` of `parts`' contiguous share of n units.
static inline Span share(int64_t n, int part, int parts) {
  return {n * part / parts, n * (part + 1) / parts};
}

// Row-major float32 matrix: `stride` floats from row to row (a column slice of a wider one
// has stride > cols).
struct View {
  float* data;
  int64_t stride, rows, cols;
  float* row(int64_t r) const { return data + r * stride; }
  View part(Span s) const { return {row(s.begin), stride, s.end - s.begin, cols}; }
};

// What the first of two int8 terms leaves is at most half of its scale, 64 steps of the second.
constexpr int32_t TERM_RATIO = 128;

// int8 activations. A row is [q int8 x K'][scale f32 x groups][sum i32 x groups], K' = K padded to whole
// groups (one group: to 32), and sum[g] the sum of group g's q.
struct QuantizedView {
  uint8_t* data;
  int64_t stride;  // bytes from row to row
  int64_t rows, padded, groups;
  int64_t group;  // columns that share a scale; 0: all
  // 2: the bytes of a row are those of two rows, one after the other, whose sum it means. The second's scales
  // are the first's over TERM_RATIO, so that their integers can be added before they are scaled.
  int64_t terms;
  int8_t* q(int64_t r) const { return (int8_t*)(data + r * stride); }
  float* scale(int64_t r) const { return (float*)(data + r * stride + padded); }
  int32_t* sum(int64_t r) const { return (int32_t*)(data + r * stride + padded + groups * 4); }
  QuantizedView part(Span s) const {
    return {data + s.begin * stride, stride, s.end - s.begin, padded, groups, group, terms};
  }
  QuantizedView second() const { return {data + stride / 2, stride, rows, padded, groups, group, terms}; }
};

// bfloat16 activations; a row of odd length has a zero behind it.
struct Bf16View {
  uint16_t* data;
  int64_t stride, rows, cols;  // stride in elements
  uint16_t* row(int64_t r) const { return data + r * stride; }
  Bf16View part(Span s) const { return {row(s.begin), stride, s.end - s.begin, cols}; }
};

struct AttentionArgs {
  View q, k, v, out;  // [T, n_heads * d], [T, n_kv_heads * d] twice, [T, n_heads * d]
  KVView kv;
  const int32_t *page_table, *kv_slot, *kv_len, *request;
  const int32_t* span;          // null, or keys a token sees where that is more than kv_len
  int64_t pages_per_request;    // columns of page_table
  int64_t n_heads, window;      // window 0: none
  float scale, softcap;         // softcap 0: none
  const float *sinks, *slopes;  // [n_heads], or null
  bool appends;  // `attend` stores the one token's keys and values itself: who reads them, stores them
};

// A thread's place among those that share one call, and the scratch of all of them: AttentionScratch's bytes
// each, `stride` bytes apart.
struct Team {
  uint8_t* scratch;
  int64_t stride;
  int part, parts;
};

struct Rotation {
  int64_t head_dim;
  bool interleaved;
};

// A row of logits is weighed in pieces of fixed length, by any number of threads: each one's largest value,
// and the sum of its exponentials relative to that.
constexpr int64_t PIECE = 1024;
struct Piece {
  float top, mass;
};
static inline int64_t pieces_of(int64_t n) {
  return (n + PIECE - 1) / PIECE;
}

// A row's largest values are looked for among its stretches whose own largest promises some.
constexpr int64_t STRETCH = 64;
static inline int64_t stretches_of(int64_t n) {
  return (n + STRETCH - 1) / STRETCH;
}

// Of a row x with the largest value `top`: sum of exp(x - top), and of (x - top) weighed by that.
struct Moments {
  double mass, first;
};

enum class Arithmetic : int64_t { int8 = 0, bf16 = 1, f32 = 2 };

struct Kernels {
  const char* isa;
  void (*linear)(const View& x, const Weight& w, const float* bias, const View& y, Span panels);
  void (*linear_i8)(const QuantizedView& x, const Weight& w, const float* bias, const View& y, Span panels);
  void (*linear_bf16)(const Bf16View& x, const Weight& w, const float* bias, const View& y, Span panels);
  void (*quantize)(const View& x, const QuantizedView& out, float threshold, Span rows);
  void (*round_bf16)(const View& x, const Bf16View& out, float threshold, Span rows);
  void (*cut)(const View& x, const View& out, float threshold, Span rows);
  void (*rms_norm)(const View& x, const float* w, const View& out, float eps, int64_t width, Span rows);
  void (*add_rms_norm)(const View& x, const View& y, const float* w, const View& total, const View& out,
                       float eps, Span rows);
  void (*layer_norm)(const View& x, const float* w, const float* b, const View& out, float eps, Span rows);
  void (*add)(const View& x, const View& y, const View& out, Span rows);
  void (*mul)(const View& x, const View& y, const View& out, Span rows);
  void (*silu_mul)(const View& gate, const View& up, const View& out, Span rows);
  void (*gelu_mul)(const View& gate, const View& up, const View& out, Span rows);
  void (*gelu)(const View& x, const View& out, bool exact, Span rows);
  void (*relu2)(const View& x, const View& out, Span rows);
  void (*softcap)(const View& x, const View& out, float cap, Span rows);
  void (*rope)(const View& x, const View& angles, const View& out, Rotation rotation, Span rows);
  void (*append_kv)(const AttentionArgs& a, Span rows);
  bool (*attend)(const AttentionArgs& a, const Team& team);
  void (*merge_parts)(const AttentionArgs& a, const Team& team);  // after a barrier, if `attend` says true
  int64_t (*argmax)(const float* x, int64_t n);
  void (*weigh_pieces)(const float* x, int64_t n, Span which, Piece* out);
  void (*find_tops)(const float* x, int64_t n, float* tops);  // of each stretch, NaN left aside
  Moments (*moments)(const float* x, int64_t n, float top);
  void (*favour_green)(float* x, int64_t n, uint64_t seed, uint32_t below, float delta);
  int64_t (*pick_noisy)(const float* x, int64_t n, int64_t top, uint64_t key);
  void (*read)(const uint8_t* data, int64_t bytes);      // loads and nothing else
  int64_t (*multiply)(Arithmetic kind, int64_t rounds);  // operations done out of registers; 0: not here
};

// The kernels of the best level this machine runs, or of the named one; null if it cannot run here.
const Kernels* find_kernels(const char* isa);

}  // namespace ridgeline
