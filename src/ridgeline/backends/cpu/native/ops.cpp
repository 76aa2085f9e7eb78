// The ops of the loop: how each one's record becomes a kernel call on a thread's share.
#include <algorithm>

#include "check.h"
#include "count.h"
#include "frame.h"
#include "rows.h"
#include "sample.h"

namespace ridgeline {
namespace {

// Row `axis` of an integer field [A, T]; of a field [T], which has no other, row 0.
const int32_t* row_of(const Instr& i, const Frame& f) {
  return f.field<int32_t>(i.operands[0]) + i.ints[0] * f.program.fields[i.operands[0].index].inner;
}

void run_embedding(const Instr& i, const Frame& f) {
  const View out = f.output(i, 0);
  embedding({row_of(i, f), f.weight(i.operands[1]), f.field<int32_t>(i.operands[2]),
             f.field<float>(i.operands[3]), (float)i.floats[0]},
            out, f.rows(i));
}

void run_take_rows(const Instr& i, const Frame& f) {
  const View out = f.output(i, 0);
  take_rows(f.view(i.operands[0]), f.field<int32_t>(i.operands[1]), f.held, out, f.rows(i));
}

void run_rotary(const Instr& i, const Frame& f) {
  const View out = f.output(i, 0);
  rotary(row_of(i, f), f.vector(i.operands[1]), (float)i.floats[0], out, f.rows(i));
}

void run_rope(const Instr& i, const Frame& f) {
  const View x = f.view(i.operands[0]);
  f.kernels.rope(x, f.view(i.operands[1]), f.output(i, 0), {i.ints[0], i.ints[1] != 0}, f.rows(i));
}

constexpr int64_t OWN_ROWS = 32;

// A thread takes its panels for all rows; or all panels for its own rows, if it has so many: they then stay
// in its caches from one instruction to the next, and the panels are read often enough to be worth reading
// twice. A thread that loses its core for a while is helped out.
template <auto Kernel, class X>
void multiply(const Instr& i, const Frame& f, const X& x) {
  const Weight& w = f.weight(i.operands[1]);
  const View y = f.output(i, 0);
  const float* bias = f.vector(i.operands[2]);
  if (f.threads == 1 || x.rows < OWN_ROWS * f.threads)
    return (f.kernels.*Kernel)(x, w, bias, y, f.mine(w.panels()));
  f.shares.run(f.thread, x.rows,
               [&](Span rows) { (f.kernels.*Kernel)(x.part(rows), w, bias, y.part(rows), {0, w.panels()}); });
}

void run_linear(const Instr& i, const Frame& f) {
  multiply<&Kernels::linear>(i, f, f.view(i.operands[0]));
}

void run_linear_i8(const Instr& i, const Frame& f) {
  multiply<&Kernels::linear_i8>(i, f, f.quantized(i.operands[0]));
}

void run_linear_bf16(const Instr& i, const Frame& f) {
  multiply<&Kernels::linear_bf16>(i, f, f.bf16(i.operands[0]));
}

void run_round_bf16(const Instr& i, const Frame& f) {
  const View x = f.view(i.operands[0]);
  f.kernels.round_bf16(x, f.bf16_output(i, 0), (float)i.floats[0], f.rows(i));
}

void run_cut(const Instr& i, const Frame& f) {
  f.kernels.cut(f.view(i.operands[0]), f.output(i, 0), (float)i.floats[0], f.rows(i));
}

void run_quantize(const Instr& i, const Frame& f) {
  const View x = f.view(i.operands[0]);
  f.kernels.quantize(x, f.quantized_output(i, 0), (float)i.floats[0], f.rows(i));
}

void run_rms_norm(const Instr& i, const Frame& f) {
  const View x = f.view(i.operands[0]);
  f.kernels.rms_norm(x, f.vector(i.operands[1]), f.output(i, 0), (float)i.floats[0], i.ints[0], f.rows(i));
}

void run_add_rms_norm(const Instr& i, const Frame& f) {
  const View x = f.view(i.operands[0]);
  f.kernels.add_rms_norm(x, f.view(i.operands[1]), f.vector(i.operands[2]), f.output(i, 0), f.output(i, 1),
                         (float)i.floats[0], f.rows(i));
}

void run_layer_norm(const Instr& i, const Frame& f) {
  const View x = f.view(i.operands[0]);
  f.kernels.layer_norm(x, f.vector(i.operands[1]), f.vector(i.operands[2]), f.output(i, 0),
                       (float)i.floats[0], f.rows(i));
}

template <auto Kernel>
void run_binary(const Instr& i, const Frame& f) {
  const View x = f.view(i.operands[0]);
  (f.kernels.*Kernel)(x, f.view(i.operands[1]), f.output(i, 0), f.rows(i));
}

void run_gelu(const Instr& i, const Frame& f) {
  const View x = f.view(i.operands[0]);
  f.kernels.gelu(x, f.output(i, 0), i.ints[0] != 0, f.rows(i));
}

void run_relu2(const Instr& i, const Frame& f) {
  const View x = f.view(i.operands[0]);
  f.kernels.relu2(x, f.output(i, 0), f.rows(i));
}

void run_softcap(const Instr& i, const Frame& f) {
  const View x = f.view(i.operands[0]);
  f.kernels.softcap(x, f.output(i, 0), (float)i.floats[0], f.rows(i));
}

void run_attention(const Instr& i, const Frame& f) {
  const std::vector<Operand>& x = i.operands;
  AttentionArgs a{};
  a.q = f.view(x[0]);
  a.k = f.view(x[1]);
  a.v = f.view(x[2]);
  a.out = f.output(i, 0);
  a.kv = f.pages(f.program.states[x[3].index]);
  a.page_table = f.field<int32_t>(x[4]);
  a.pages_per_request = f.program.fields[x[4].index].inner;
  a.kv_slot = f.field<int32_t>(x[5]);
  a.kv_len = f.field<int32_t>(x[6]);
  a.request = f.field<int32_t>(x[7]);
  a.span = f.field<int32_t>(x[8]);
  a.sinks = f.vector(x[9]);
  a.slopes = f.vector(x[10]);
  a.n_heads = i.ints[0];
  a.window = i.ints[1];
  a.scale = (float)i.floats[0];
  a.softcap = (float)i.floats[1];
  a.appends = f.own && a.n_heads / a.kv.n_kv_heads <= WIDE_ROWS;
  if (!a.appends) {
    f.kernels.append_kv(a, f.mine(a.q.rows));
    f.barrier.wait(f.thread);  // a query may read what any thread has stored
  }
  const Team team{f.scratch - f.thread * f.scratch_bytes, f.scratch_bytes, f.thread, f.threads};
  if (f.kernels.attend(a, team)) {
    f.barrier.wait(f.thread);
    f.kernels.merge_parts(a, team);
  }
}

void run_sample(const Instr& i, const Frame& f) {
  const std::vector<Operand>& x = i.operands;
  const View logits = f.view(x[0]);
  const Sampler* samplers = f.field<Sampler>(x[1]);
  const SampleLists lists{f.field<int32_t>(x[2]),
                          f.field<float>(x[3]),
                          f.field<int32_t>(x[4]),
                          f.field<int32_t>(x[5]),
                          f.field<int32_t>(x[6]),
                          f.field<uint32_t>(x[7]),
                          f.has(x[7]) ? f.program.fields[x[7].index].inner : 0};
  const View ids = f.output(i, 0), logprobs = f.output(i, 1), top_ids = f.output(i, 2),
             top_logprobs = f.output(i, 3);
  const int64_t each = pieces_of(logits.cols);
  const Span pieces = f.mine(logits.rows * each), rows = f.rows(i);
  for (int64_t p = pieces.begin; p < pieces.end;) {
    const int64_t r = p / each, end = std::min(pieces.end, (r + 1) * each);
    f.kernels.weigh_pieces(logits.row(r), logits.cols, {p - r * each, end - r * each}, f.pieces + r * each);
    count(Counted::acts, (std::min(logits.cols, (end - r * each) * PIECE) - (p - r * each) * PIECE) * 4);
    p = end;
  }
  f.barrier.wait(f.thread);
  for (int64_t r = rows.begin; r < rows.end; r++) {
    const Sampled s = sample(f.kernels, logits.row(r), f.pieces + r * each, logits.cols, samplers[r], lists,
                             f.scratch, (int32_t*)top_ids.row(r), top_logprobs.row(r));
    *(int32_t*)ids.row(r) = s.id;
    *logprobs.row(r) = s.logprob;
  }
}

}  // namespace

// Attention reads only its own rows before its own barrier; a linear writes
// its panels' columns of every row, or rows that it shares out.
const OpEntry OPS[] = {
    {"embedding", "ids table input_row input_rows", "fwFF", "xr.", "a", "axis", "scale", true, true, true,
     run_embedding, check_embedding},
    {"take_rows", "x out_rows held", "afH", "r", "a", "", "", false, true, true, run_take_rows,
     check_take_rows},
    {"rotary", "positions inv_freq", "fv", "x", "a", "axis", "scale", true, true, true, run_rotary,
     check_rotary},
    {"rope", "x angles", "aa", "", "a", "head_dim interleaved", "", true, true, true, run_rope, nullptr},
    {"linear", "x w bias", "awV", "", "a", "", "", false, false, false, run_linear, nullptr},
    {"linear_i8", "x w bias", "qwV", "", "a", "", "", false, false, false, run_linear_i8, nullptr},
    {"linear_bf16", "x w bias", "bwV", "", "a", "", "", false, false, false, run_linear_bf16, nullptr},
    {"round_bf16", "x", "a", "", "b", "", "threshold", true, true, true, run_round_bf16, nullptr},
    {"cut", "x", "a", "", "a", "", "threshold", true, true, true, run_cut, nullptr},
    {"quantize_act", "x", "a", "", "q", "", "threshold", true, true, true, run_quantize, nullptr},
    {"rms_norm", "x w", "av", "", "a", "width", "eps", true, true, true, run_rms_norm, nullptr},
    {"add_rms_norm", "x y w", "aav", "", "aa", "", "eps", true, true, true, run_add_rms_norm, nullptr},
    {"layer_norm", "x w b", "avV", "", "a", "", "eps", true, true, true, run_layer_norm, nullptr},
    {"add", "x y", "aa", "", "a", "", "", true, true, true, run_binary<&Kernels::add>, nullptr},
    {"mul", "x y", "aa", "", "a", "", "", true, true, true, run_binary<&Kernels::mul>, nullptr},
    {"silu_mul", "gate up", "aa", "", "a", "", "", true, true, true, run_binary<&Kernels::silu_mul>, nullptr},
    {"gelu_mul", "gate up", "aa", "", "a", "", "", true, true, true, run_binary<&Kernels::gelu_mul>, nullptr},
    {"gelu", "x", "a", "", "a", "exact", "", true, true, true, run_gelu, nullptr},
    {"relu2", "x", "a", "", "a", "", "", true, true, true, run_relu2, nullptr},
    {"softcap", "x", "a", "", "a", "", "cap", true, true, false, run_softcap, nullptr},
    {"attention", "q k v kv page_table kv_slot kv_len request span sinks slopes", "aaasffffFVV", ".rrrr", "a",
     "n_heads window", "scale softcap", true, false, false, run_attention, check_attention},
    {"sample", "logits sampler bias_ids bias_values history_ids history_prompt history_output masks",
     "affffffF", "sEEHHHM", "iaia", "", "", false, true, false, run_sample, check_sample},
};
const int OP_COUNT = sizeof OPS / sizeof OPS[0];

}  // namespace ridgeline
