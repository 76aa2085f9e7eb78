// Sampling: from a row of logits and its sampler record to a token and logprobs; a pure function of both. The
// order and the meaning of every field are those of ops/sample.py.
#pragma once

#include "kernels.h"

namespace ridgeline {

constexpr int64_t MAX_TOP = 20;

enum GreenScheme : int32_t { LEFT_HASH = 0, MIN_HASH = 1, SELF_HASH = 2 };

enum SamplerFlags : uint32_t { REPEAT_PROMPT = 1, COUNT_PROMPT = 2, PROCESSED = 4 };

struct Sampler {
  uint64_t seed;
  float temperature, top_p, min_p, repetition, frequency, presence;
  int32_t top_k, n_top, choice, position, target;
  uint32_t flags;
  int32_t mask_row, bias_start, bias_stop, history_start, history_stop;
  float typical_p;
  uint64_t green_key;
  uint32_t green_below;  // 0: no watermark
  float green_delta;
  int32_t green_scheme, green_top;
  int32_t green_past[4];  // the last first; -1: there is none
};
static_assert(sizeof(Sampler) == 120, "the layout of ops/sample.py");

// Lists shared by all rows; a sampler names its ranges.
struct SampleLists {
  const int32_t* bias_ids;
  const float* bias_values;
  const int32_t *history_ids, *history_prompt, *history_output;
  const uint32_t* masks;  // [M][mask_words]
  int64_t mask_words;
};

struct Sampled {
  int32_t id;
  float logprob;
};

// Bytes of scratch, 64-byte aligned, for n tokens: processed logits, candidate ids, pieces, stretches' tops.
static inline int64_t sample_scratch_bytes(int64_t n) {
  return (n + 15) / 16 * 128 + pieces_of(n) * (int64_t)sizeof(Piece) +
         stretches_of(n) * (int64_t)sizeof(float);
}

// `pieces` are those of `logits`. Also fills top_ids and top_logprobs [MAX_TOP] with the n_top likeliest, -1
// and -inf beyond. A NaN among the logits to pick from gives the id -1; one among those that logprobs are of,
// logprobs of -inf and no likeliest.
Sampled sample(const Kernels& kernels, const float* logits, const Piece* pieces, int64_t n, const Sampler& s,
               const SampleLists& lists, uint8_t* scratch, int32_t* top_ids, float* top_logprobs);

}  // namespace ridgeline
