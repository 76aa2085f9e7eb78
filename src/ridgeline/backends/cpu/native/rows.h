// Row-moving work that needs no vector code: embedding, take_rows, rotary.
#pragma once

#include "kernels.h"

namespace ridgeline {

struct EmbeddingArgs {
  const int32_t* ids;
  const Weight& table;
  const int32_t* input_row;  // null, or >= 0 where the row comes from input_rows
  const float* input_rows;   // [I, cols], taken as they are
  float scale;               // of the table's rows
};

void embedding(const EmbeddingArgs& a, const View& out, Span rows);

// out[r] = x[index[r]], or held[-1 - index[r]] for a negative index.
void take_rows(const View& x, const int32_t* index, const float* held, const View& out, Span rows);

// out[t] = cos | sin of positions[t] * inv_freq, times scale.
void rotary(const int32_t* positions, const float* inv_freq, float scale, const View& out, Span rows);

}  // namespace ridgeline
