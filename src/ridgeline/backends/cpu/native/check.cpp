#include "check.h"

#include <stdexcept>
#include <string>

#include "sample.h"

namespace ridgeline {
namespace {

void require(bool good, const char* what, int64_t value) {
  if (!good) throw std::invalid_argument(std::string("batch: ") + what + " is " + std::to_string(value));
}

void in_range(const int32_t* values, int64_t n, int64_t low, int64_t high, const char* what) {
  for (int64_t i = 0; i < n; i++) require(values[i] >= low && values[i] < high, what, values[i]);
}

void check_range(int32_t start, int32_t stop, int64_t size, const char* what) {
  require(0 <= start && start <= stop && stop <= size, what, stop);
}

}  // namespace

void check_header(const Program& p, const uint8_t* batch, int64_t bytes) {
  const int64_t* header = (const int64_t*)batch;
  require(bytes == p.batch_bytes, "the size", bytes);
  require(header[0] == BATCH_MAGIC && header[1] == BATCH_VERSION, "the version", header[1]);
  require(header[2] == bytes, "the stated size", header[2]);
  for (int64_t axis = AXIS_T; axis <= AXIS_M; axis++)
    require(header[axis] >= 0 && header[axis] <= p.capacity[axis], "a size", header[axis]);
}

void check_copies(const Frame& f) {
  const int64_t n = f.size(AXIS_C), slots = f.program.pages * PAGE;
  const int32_t* copies = f.field_at<int32_t>(f.program.copies);
  for (int64_t c = 0; c < n; c++, copies += 4) {
    const int64_t source = copies[1], target = copies[2], count = copies[3];
    require(source >= 0 && target >= 0 && count >= 0 && source + count <= slots && target + count <= slots,
            "a copy's slot", source);
  }
}

void check_hold(const Frame& f) {
  const int32_t *want = f.field_at<int32_t>(f.program.want), *slot = f.field_at<int32_t>(f.program.hold_slot);
  for (int64_t r = 0; r < f.size(AXIS_L); r++)
    if (want[r] & WANT_HOLD) require(slot[r] >= 0 && slot[r] < f.program.held_rows, "hold_slot", slot[r]);
}

void check_embedding(const Instr& i, const Frame& f) {
  const int64_t rows = f.rows_of(f.program.buffers[i.outputs[0]]);
  const Field& field = f.program.fields[i.operands[0].index];
  require(i.ints[0] >= 0 && i.ints[0] < field.outer, "the axis of token ids", i.ints[0]);
  const int32_t *ids = f.field<int32_t>(i.operands[0]) + i.ints[0] * field.inner,
                *given = f.field<int32_t>(i.operands[2]);
  const bool has_given = given && f.field<float>(i.operands[3]);
  for (int64_t r = 0; r < rows; r++) {
    if (has_given && given[r] >= 0)
      require(given[r] < f.program.fields[i.operands[3].index].outer, "input_row", given[r]);
    else
      require(ids[r] >= 0 && ids[r] < f.weight(i.operands[1]).rows, "a token id", ids[r]);
  }
}

void check_take_rows(const Instr& i, const Frame& f) {
  const int64_t held = f.has(i.operands[2]) ? f.program.held_rows : 0;
  in_range(f.field<int32_t>(i.operands[1]), f.rows_of(f.program.buffers[i.outputs[0]]), -held,
           f.view(i.operands[0]).rows, "out_rows");
}

void check_rotary(const Instr& i, const Frame& f) {
  const Field& positions = f.program.fields[i.operands[0].index];
  require(i.ints[0] >= 0 && i.ints[0] < positions.outer, "the position axis", i.ints[0]);
}

void check_attention(const Instr& i, const Frame& f) {
  const int64_t tokens = f.view(i.operands[0]).rows, pages = f.program.pages;
  const int64_t width = f.program.fields[i.operands[4].index].inner;
  const int32_t *table = f.field<int32_t>(i.operands[4]), *length = f.field<int32_t>(i.operands[6]);
  const int32_t *request = f.field<int32_t>(i.operands[7]), *span = f.field<int32_t>(i.operands[8]);
  const int64_t window = i.ints[1];
  in_range(f.field<int32_t>(i.operands[5]), tokens, 0, pages * PAGE, "kv_slot");
  in_range(request, tokens, 0, f.program.fields[i.operands[4].index].outer, "a token's request");
  int64_t from = 0, to = 0;  // pages already looked at, of the token before
  for (int64_t t = 0; t < tokens; t++) {
    const int64_t seen = span && span[t] > length[t] ? span[t] : length[t];
    require(length[t] > 0 && seen <= width * PAGE, "kv_len or span", seen);
    const int64_t first = (window && length[t] > window ? length[t] - window : 0) / PAGE;
    const bool known = t > 0 && request[t] == request[t - 1] && first >= from;
    const int64_t end = (seen + PAGE - 1) / PAGE;
    for (int64_t p = known && to > first ? to : first; p < end; p++) {
      const int32_t page = table[request[t] * width + p];
      require(page >= 0 && page < pages, "a page of page_table", page);
    }
    from = first;
    to = known && to > end ? to : end;
  }
}

void check_sample(const Instr& i, const Frame& f) {
  const std::vector<Operand>& x = i.operands;
  const View logits = f.view(x[0]);
  const Sampler* samplers = f.field<Sampler>(x[1]);
  const int64_t bias = f.size(AXIS_E), history = f.size(AXIS_H);
  in_range(f.field<int32_t>(x[2]), bias, 0, logits.cols, "a biased token id");
  in_range(f.field<int32_t>(x[4]), history, 0, logits.cols, "a token id of history");
  for (int64_t r = 0; r < logits.rows; r++) {
    const Sampler& s = samplers[r];
    check_range(s.bias_start, s.bias_stop, bias, "a row's bias range");
    check_range(s.history_start, s.history_stop, history, "a row's history range");
    require(s.mask_row >= -1 && s.mask_row < f.size(AXIS_M), "mask_row", s.mask_row);
    require(s.target < logits.cols, "target", s.target);
    require(s.n_top >= 0 && s.n_top <= MAX_TOP, "n_top", s.n_top);
    require(s.green_scheme >= LEFT_HASH && s.green_scheme <= SELF_HASH, "green_scheme", s.green_scheme);
  }
}

}  // namespace ridgeline
