#include "pack.h"

#include <string.h>

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <string>

#include "half.h"

namespace ridgeline {
namespace {

// How a file stores a row: a header, then blocks of `block` weights in `bytes` bytes; and the panel format
// that holds them.
struct Source {
  const char* name;
  int64_t header, block, bytes;
  Format format;
  void (*pack_block)(const Layout& l, const uint8_t* block, uint8_t* unit, int64_t row);
};

constexpr uint32_t LOW = 0x0f0f0f0fu;

uint32_t word(const uint8_t* p) {
  uint32_t w;
  memcpy(&w, p, 4);
  return w;
}

void put(uint8_t* p, uint32_t w) {
  memcpy(p, &w, 4);
}

// Place of 4 consecutive k of row r (0..31) in byte vector `step` of a unit of codes.
uint8_t* quad(uint8_t* unit, int64_t step, int64_t r) {
  return unit + step * 128 + r * 4;
}

// A row's scale and, behind those of all rows, its minimum.
void put_scale(const Layout& l, const uint8_t* scale, uint8_t* unit, int64_t r) {
  memcpy(unit + l.code_bytes() + r * 2, scale, 2);
}

void put_minimum(const Layout& l, const uint8_t* minimum, uint8_t* unit, int64_t r) {
  memcpy(unit + l.code_bytes() + PANEL * 2 + r * 2, minimum, 2);
}

void pack_f32(const Layout&, const uint8_t* block, uint8_t* unit, int64_t r) {
  memcpy(unit + r * 4, block, 4);
}

void pack_f16(const Layout&, const uint8_t* block, uint8_t* unit, int64_t r) {
  const float x = half_at(block);
  memcpy(unit + r * 4, &x, 4);
}

// bf16 is packed by pairs of k; a lone last k has zero beside it, which the memory already holds.
void pack_bf16(const Layout&, const uint8_t* block, uint8_t* half_unit, int64_t r) {
  memcpy(half_unit + r * 4, block, 2);
}

// n signed bytes; a code is the value + 128.
void pack_signed(const uint8_t* q, int64_t n, uint8_t* unit, int64_t r) {
  for (int64_t j = 0; j < n / 4; j++) put(quad(unit, j, r), word(q + 4 * j) ^ 0x80808080u);
}

void pack_int8(const Layout& l, const uint8_t* block, uint8_t* unit, int64_t r) {
  pack_signed(block + 2, l.group, unit, r);
  put_scale(l, block, unit, r);
}

// Four weights at a time of a row whose header holds its scale.
void pack_channel(const Layout&, const uint8_t* block, uint8_t* quarter, int64_t r) {
  pack_signed(block, 4, quarter, r);
}

void pack_q5_0(const Layout& l, const uint8_t* block, uint8_t* unit, int64_t r) {
  const uint32_t fifth = word(block + 2);
  uint8_t values[GROUP];
  for (int64_t k = 0; k < GROUP; k++) {
    const uint32_t pair = block[6 + k % 16], low = k < 16 ? pair & 15 : pair >> 4;
    values[k] = (uint8_t)((low | (fifth >> k & 1) << 4) - 16);
  }
  pack_signed(values, GROUP, unit, r);
  put_scale(l, block, unit, r);
}

void pack_iq4_nl(const Layout& l, const uint8_t* block, uint8_t* unit, int64_t r) {
  static const int8_t table[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
  uint8_t values[GROUP];
  for (int64_t k = 0; k < 16; k++) {
    values[k] = (uint8_t)table[block[2 + k] & 15];
    values[k + 16] = (uint8_t)table[block[2 + k] >> 4];
  }
  pack_signed(values, GROUP, unit, r);
  put_scale(l, block, unit, r);
}

// A file's low nibbles are the first half of a group, its high ones the second; a unit's are alternating
// steps of 4 k.
void pack_nibbles(const Layout& l, const uint8_t* q, uint8_t* unit, int64_t r) {
  const int64_t half = l.group / 8;  // steps in half a group
  const auto step = [&](int64_t s) {
    return s < half ? word(q + 4 * s) & LOW : word(q + 4 * (s - half)) >> 4 & LOW;
  };
  for (int64_t j = 0; j < half; j++) put(quad(unit, j, r), step(2 * j) | step(2 * j + 1) << 4);
}

void pack_int4(const Layout& l, const uint8_t* block, uint8_t* unit, int64_t r) {
  pack_nibbles(l, block + 2, unit, r);
  put_scale(l, block, unit, r);
}

void pack_uint4(const Layout& l, const uint8_t* block, uint8_t* unit, int64_t r) {
  pack_nibbles(l, block + 4, unit, r);
  put_scale(l, block, unit, r);
  put_minimum(l, block + 2, unit, r);
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

// Where block b of a panel starts: blocks are units, or a part of one.
uint8_t* block_at(const Source& s, uint8_t* panel, int64_t b) {
  const Layout& l = layout(s.format);
  const int64_t per_unit = l.unit() / s.block, part = b % per_unit;
  return panel + b / per_unit * l.unit_bytes() + part * (l.is_float() ? 2 : PANEL * s.block * l.bits / 8);
}

void pack_panel(const Source& s, const Weight& w, const uint8_t* raw, int64_t panel, uint8_t* out) {
  const int64_t blocks = w.cols / s.block, rows = std::min(PANEL, w.rows - panel * PANEL);
  const Layout& l = layout(w.format);
  for (int64_t r = 0; r < rows; r++) {
    const uint8_t* row = raw + (panel * PANEL + r) * row_bytes(s, w.cols);
    for (int64_t b = 0; b < blocks; b++)
      s.pack_block(l, row + s.header + b * s.bytes, block_at(s, out, b), r);
    if (l.scales == Scales::channel) memcpy(out + w.panel_bytes() - l.tail_bytes() + r * 4, row, 4);
  }
}

float weight_at(const Layout& l, const uint8_t* unit, const uint8_t* tail, int64_t r, int64_t k) {
  const uint8_t* behind = unit + l.code_bytes() + r * 2;
  const int64_t per_byte = 8 / l.bits, step = k / 4;
  const uint8_t byte = unit[step / per_byte * 128 + r * 4 + k % 4];
  const int code = l.bits == 8 ? byte : step % 2 ? byte >> 4 : byte & 15;
  if (l.scales == Scales::half_min) return (float)code * half_at(behind) + half_at(behind + PANEL * 2);
  const float scale = l.scales == Scales::channel ? float_at(tail + r * 4) : half_at(behind);
  return (float)(code - (int)l.zero) * scale;
}

}  // namespace

int64_t packed_bytes(const char* format, int64_t rows, int64_t cols) {
  return shape(source(format), rows, cols).bytes();
}

Weight pack(Pool& pool, const char* format, const uint8_t* raw, size_t raw_bytes, int64_t rows, int64_t cols,
            uint8_t* out) {
  const Source& s = source(format);
  Weight w = shape(s, rows, cols);
  if ((uint64_t)raw_bytes != (uint64_t)row_bytes(s, cols) * (uint64_t)rows)
    throw std::invalid_argument(std::string(s.name) + " weight does not fit its " +
                                std::to_string(raw_bytes) + " bytes");
  // The same halves as in a step, so that the thread that will read a panel also touches it first.
  pool.run([&](int thread) {
    const int64_t panels = w.panels(), threads = pool.threads();
    for (int64_t p = panels * thread / threads; p < panels * (thread + 1) / threads; p++)
      pack_panel(s, w, raw, p, out + p * w.panel_bytes());
  });
  w.data = out;
  return w;
}

void unpack_row(const Weight& w, int64_t row, float* out) {
  const Layout& l = layout(w.format);
  const int64_t r = row % PANEL;
  const uint8_t *unit = w.panel(row / PANEL), *tail = unit + w.units() * l.unit_bytes();
  for (int64_t k = 0; k < w.cols; k += l.unit(), unit += l.unit_bytes())
    for (int64_t i = 0; i < std::min(l.unit(), w.cols - k); i++) {
      if (w.format == Format::f32)
        out[k + i] = float_at(unit + r * 4);
      else if (w.format == Format::bf16)
        out[k + i] = bf16_at(unit + r * 4 + i * 2);
      else
        out[k + i] = weight_at(l, unit, tail, r, i);
    }
}

}  // namespace ridgeline
