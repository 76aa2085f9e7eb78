#include "rows.h"

#include <math.h>
#include <string.h>

#include "count.h"
#include "pack.h"

namespace ridgeline {

void embedding(const EmbeddingArgs& a, const View& out, Span rows) {
  for (int64_t r = rows.begin; r < rows.end; r++) {
    float* to = out.row(r);
    count(Counted::acts, 4 + out.cols * 4);
    if (a.input_row && a.input_rows && a.input_row[r] >= 0) {
      memcpy(to, a.input_rows + a.input_row[r] * out.cols, (size_t)out.cols * sizeof(float));
      continue;
    }
    unpack_row(a.table, a.ids[r], to);
    count(Counted::weights, a.table.row_bytes());
    for (int64_t c = 0; c < out.cols; c++) to[c] *= a.scale;
  }
}

void take_rows(const View& x, const int32_t* index, const float* held, const View& out, Span rows) {
  for (int64_t r = rows.begin; r < rows.end; r++) {
    const float* source = index[r] >= 0 ? x.row(index[r]) : held + (-1 - index[r]) * out.cols;
    memcpy(out.row(r), source, (size_t)out.cols * sizeof(float));
    count(Counted::acts, 2 * out.cols * 4);
  }
}

void rotary(const int32_t* positions, const float* inv_freq, float scale, const View& out, Span rows) {
  const int64_t half = out.cols / 2;
  for (int64_t r = rows.begin; r < rows.end; r++) {
    count(Counted::acts, 4 + out.cols * 4);
    count_once(Counted::weights, inv_freq, half * 4);
    for (int64_t i = 0; i < half; i++) {
      const float angle = (float)positions[r] * inv_freq[i];
      out.row(r)[i] = cosf(angle) * scale;
      out.row(r)[half + i] = sinf(angle) * scale;
    }
  }
}

}  // namespace ridgeline
