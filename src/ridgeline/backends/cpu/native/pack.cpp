#include "pack.h"

#include <string.h>

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <string>

#include "blocks.h"
#include "half.h"
#include "kernels.h"

namespace ridgeline {
namespace {

// How a file stores a row: a header, then blocks of `block` weights in `bytes` bytes; and the panel format
// that holds them.
struct Source {
  const char* name;
  int64_t header, block, bytes;
  Format format;
  void (*pack_block)(const Layout& l, const uint8_t* block, const Place& at);
};

constexpr uint32_t LOW = 0x0f0f0f0fu;

// A row's scale and, behind those of all rows, its minimum.
void put_scale(const Layout& l, const uint8_t* scale, const Place& at) {
  memcpy(at.unit + l.code_bytes() + at.row * 2, scale, 2);
}

void put_minimum(const Layout& l, const uint8_t* minimum, const Place& at) {
  memcpy(at.unit + l.code_bytes() + PANEL * 2 + at.row * 2, minimum, 2);
}

void pack_f32(const Layout&, const uint8_t* block, const Place& at) {
  memcpy(at.unit + at.row * 4, block, 4);
}

void pack_f16(const Layout&, const uint8_t* block, const Place& at) {
  const float x = half_at(block);
  memcpy(at.unit + at.row * 4, &x, 4);
}

// bf16 is packed by pairs of k; a lone last k has zero beside it, which the memory already holds.
void pack_bf16(const Layout&, const uint8_t* block, const Place& at) {
  memcpy(at.unit + at.row * 4, block, 2);
}

// n signed bytes; a code is the value + 128.
void put_signed(const uint8_t* q, int64_t n, const Place& at) {
  for (int64_t j = 0; j < n / 4; j++) put_quad(at.unit, j, at.row, word_at(q + 4 * j) ^ 0x80808080u);
}

void pack_int8(const Layout& l, const uint8_t* block, const Place& at) {
  put_signed(block + 2, l.group, at);
  put_scale(l, block, at);
}

// Four weights at a time of a row whose header holds its scale.
void pack_channel(const Layout&, const uint8_t* block, const Place& at) {
  put_signed(block, 4, at);
}

// Nibbles of q, the first half of the group low, with the bits of `fifth` above them.
void read_five_bits(const uint8_t* q, uint32_t fifth, uint8_t (&values)[GROUP]) {
  for (int64_t k = 0; k < GROUP; k++) {
    const uint32_t low = k < 16 ? q[k] & 15 : q[k - 16] >> 4;
    values[k] = (uint8_t)(low | (fifth >> k & 1) << 4);
  }
}

void pack_q5_0(const Layout& l, const uint8_t* block, const Place& at) {
  uint8_t values[GROUP];
  read_five_bits(block + 6, word_at(block + 2), values);
  for (uint8_t& v : values) v = (uint8_t)(v + 128 - 16);
  put_codes(l, values, at.unit, at.row);
  put_scale(l, block, at);
}

void pack_q5_1(const Layout& l, const uint8_t* block, const Place& at) {
  uint8_t values[GROUP];
  read_five_bits(block + 8, word_at(block + 4), values);
  put_codes(l, values, at.unit, at.row);
  put_scale(l, block, at);
  put_minimum(l, block + 2, at);
}

void pack_iq4_nl(const Layout& l, const uint8_t* block, const Place& at) {
  uint8_t values[GROUP];
  for (int64_t k = 0; k < 16; k++) {
    values[k] = (uint8_t)(IQ4_VALUES[block[2 + k] & 15] + 128);
    values[k + 16] = (uint8_t)(IQ4_VALUES[block[2 + k] >> 4] + 128);
  }
  put_codes(l, values, at.unit, at.row);
  put_scale(l, block, at);
}

// A file's low nibbles are the first half of a group, its high ones the second; a unit's are alternating
// steps of 4 k.
void pack_nibbles(const Layout& l, const uint8_t* q, const Place& at) {
  const int64_t half = l.group / 8;  // steps in half a group
  const auto step = [&](int64_t s) {
    return s < half ? word_at(q + 4 * s) & LOW : word_at(q + 4 * (s - half)) >> 4 & LOW;
  };
  for (int64_t j = 0; j < half; j++) put_quad(at.unit, j, at.row, step(2 * j) | step(2 * j + 1) << 4);
}

void pack_int4(const Layout& l, const uint8_t* block, const Place& at) {
  pack_nibbles(l, block + 2, at);
  put_scale(l, block, at);
}

void pack_uint4(const Layout& l, const uint8_t* block, const Place& at) {
  pack_nibbles(l, block + 4, at);
  put_scale(l, block, at);
  put_minimum(l, block + 2, at);
}

const Source SOURCES[] = {
    {"f32", 0, 1, 4, Format::f32, pack_f32},
    {"f16", 0, 1, 2, Format::f32, pack_f16},
    {"bf16", 0, 1, 2, Format::bf16, pack_bf16},
    {"int8", 4, 4, 4, Format::int8, pack_channel},
    {"q8_0", 0, 32, 34, Format::int8_g32, pack_int8},
    {"int8_g128", 0, 128, 130, Format::int8_g128, pack_int8},
    {"q5_0", 0, 32, 22, Format::int8_g32, pack_q5_0},
    {"iq4_nl", 0, 32, 18, Format::int8_g32, pack_iq4_nl},
    {"q4_0", 0, 32, 18, Format::int4_g32, pack_int4},
    {"int4_g64", 0, 64, 34, Format::int4_g64, pack_int4},
    {"int4_g128", 0, 128, 66, Format::int4_g128, pack_int4},
    {"q4_1", 0, 32, 20, Format::uint4_g32, pack_uint4},
    {"uint4_g64", 0, 64, 36, Format::uint4_g64, pack_uint4},
    {"uint4_g128", 0, 128, 68, Format::uint4_g128, pack_uint4},
    {"q5_1", 0, 32, 24, Format::uint8_g32, pack_q5_1},
    {"q2_k", 0, 256, 84, Format::k2, pack_q2_k},
    {"q3_k", 0, 256, 110, Format::k3, pack_q3_k},
    {"q4_k", 0, 256, 144, Format::k4, pack_q4_k},
    {"q5_k", 0, 256, 176, Format::k5, pack_q5_k},
    {"q6_k", 0, 256, 210, Format::k6, pack_q6_k},
    {"iq4_xs", 0, 256, 136, Format::k8, pack_iq4_xs},
};

const Source& source(const std::string& name) {
  for (const Source& s : SOURCES)
    if (name == s.name) return s;
  throw std::invalid_argument("the cpu backend has no weight format " + name);
}

int64_t row_bytes(const Source& s, int64_t cols) {
  return s.header + cols / s.block * s.bytes;
}

Weight shape(const Source& s, int64_t rows, int64_t cols) {
  if (rows < 1 || cols < 1 || rows > INT32_MAX || cols > INT32_MAX || cols % s.block != 0)
    throw std::invalid_argument(std::string(s.name) + " does not fit [" + std::to_string(rows) + ", " +
                                std::to_string(cols) + "]");
  return {nullptr, s.format, rows, cols};
}

// Where block b of a row starts: blocks are units, or a part of one, or several.
Place place(const Source& s, const Weight& w, uint8_t* panel, int64_t b, int64_t row) {
  const Layout& l = layout(s.format);
  const int64_t k = b * s.block, part = k % l.unit();
  uint8_t* unit =
      panel + k / l.unit() * l.unit_bytes() + (l.is_float() ? part * 2 : part * PANEL * l.bits / 8);
  return {unit, panel + w.units() * l.unit_bytes() + (l.is_super() ? k / SUPER * l.tail_bytes() : 0), row};
}

void pack_panel(const Source& s, const Weight& w, const uint8_t* raw, int64_t panel, uint8_t* out) {
  const int64_t blocks = w.cols / s.block, rows = std::min(PANEL, w.rows - panel * PANEL);
  const Layout& l = layout(w.format);
  for (int64_t r = 0; r < rows; r++) {
    const uint8_t* row = raw + (panel * PANEL + r) * row_bytes(s, w.cols);
    for (int64_t b = 0; b < blocks; b++)
      s.pack_block(l, row + s.header + b * s.bytes, place(s, w, out, b, r));
    if (l.scales == Scales::channel) memcpy(place(s, w, out, 0, r).tail + r * 4, row, 4);
  }
}

struct Affine {
  float scale, minimum;
};

// Of weight k of a unit, in row r; `tail` is the unit's part of it.
Affine affine_at(const Layout& l, const uint8_t* unit, const uint8_t* tail, int64_t r, int64_t k) {
  const uint8_t* behind = unit + l.code_bytes() + k / l.group * l.group_scale_bytes();
  switch (l.scales) {
    case Scales::half:
      return {half_at(behind + r * 2), 0};
    case Scales::half_min:
      return {half_at(behind + r * 2), half_at(behind + PANEL * 2 + r * 2)};
    case Scales::channel:
      return {float_at(tail + r * 4), 0};
    case Scales::super:
      return {half_at(tail + r * 2) * (float)((int)behind[r] - 128), 0};
    case Scales::super_min:
      return {half_at(tail + r * 2) * (float)behind[r],
              -half_at(tail + PANEL * 2 + r * 2) * (float)behind[PANEL + r]};
    case Scales::none:
      break;
  }
  return {1, 0};
}

float weight_at(const Layout& l, const uint8_t* unit, const uint8_t* tail, int64_t r, int64_t k) {
  if (l.bits == 32) return float_at(unit + r * 4);
  if (l.bits == 16) return bf16_at(unit + r * 4 + k * 2);
  const int64_t per_byte = 8 / l.bits, step = k / 4;
  const uint8_t byte = unit[step / per_byte * PANEL * 4 + r * 4 + k % 4];
  const int code = l.bits == 8 ? byte : step % 2 ? byte >> 4 : byte & 15;
  const Affine a = affine_at(l, unit, tail, r, k);
  const float w = (float)(code - (int)l.zero) * a.scale;
  return l.has_minima() ? w + a.minimum : w;
}

}  // namespace

int64_t packed_bytes(const char* format, int64_t rows, int64_t cols) {
  return shape(source(format), rows, cols).bytes();
}

Weight packed(const char* format, const uint8_t* data, int64_t rows, int64_t cols) {
  Weight w = shape(source(format), rows, cols);
  w.data = data;
  return w;
}

Weight pack(Pool& pool, const char* format, const uint8_t* raw, size_t raw_bytes, int64_t rows, int64_t cols,
            uint8_t* out) {
  const Source& s = source(format);
  Weight w = shape(s, rows, cols);
  if ((uint64_t)raw_bytes != (uint64_t)row_bytes(s, cols) * (uint64_t)rows)
    throw std::invalid_argument(std::string(s.name) + " weight does not fit its " +
                                std::to_string(raw_bytes) + " bytes");
  // The same shares as in a step, so that the thread that will read a panel also touches it first.
  pool.run([&](int thread) {
    const Span mine = share(w.panels(), thread, pool.threads());
    for (int64_t p = mine.begin; p < mine.end; p++) pack_panel(s, w, raw, p, out + p * w.panel_bytes());
  });
  w.data = out;
  return w;
}

void unpack_row(const Weight& w, int64_t row, float* out) {
  const Layout& l = layout(w.format);
  const uint8_t *unit = w.panel(row / PANEL), *tail = unit + w.units() * l.unit_bytes();
  for (int64_t k = 0; k < w.cols; k += l.unit(), unit += l.unit_bytes()) {
    const uint8_t* mine = tail + (l.is_super() ? k / SUPER * l.tail_bytes() : 0);
    const int64_t count = std::min(l.unit(), w.cols - k);
    for (int64_t i = 0; i < count; i++) out[k + i] = weight_at(l, unit, mine, row % PANEL, i);
  }
}

}  // namespace ridgeline
