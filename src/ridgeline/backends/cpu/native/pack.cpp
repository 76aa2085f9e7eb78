#include "pack.h"

#include <string.h>

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <string>

#include "half.h"

namespace ridgeline {
namespace {

// How a file stores a row: blocks of `block` weights in `bytes` bytes, and the panel format that holds them.
struct Source {
  const char* name;
  int64_t block, bytes;
  Format format;
  bool (*pack_block)(const uint8_t* block, uint8_t* unit, int64_t row);  // false: not representable
};

constexpr uint32_t LOW = 0x0f0f0f0fu, HIGH = 0xf0f0f0f0u;

uint32_t word(const uint8_t* p) {
  uint32_t w;
  memcpy(&w, p, 4);
  return w;
}

void put(uint8_t* p, uint32_t w) {
  memcpy(p, &w, 4);
}

// Place of 4 consecutive k of row r (0..31) in byte vector `step` of a quantised unit.
uint8_t* quad(uint8_t* unit, int64_t step, int64_t r) {
  return unit + step * 128 + r * 4;
}

bool pack_f32(const uint8_t* block, uint8_t* unit, int64_t r) {
  memcpy(unit + r * 4, block, 4);
  return true;
}

bool pack_f16(const uint8_t* block, uint8_t* unit, int64_t r) {
  const float x = half_at(block);
  memcpy(unit + r * 4, &x, 4);
  return true;
}

bool pack_q8_0(const uint8_t* block, uint8_t* unit, int64_t r) {
  for (int64_t j = 0; j < 8; j++) put(quad(unit, j, r), word(block + 2 + 4 * j) ^ 0x80808080u);
  memcpy(unit + 1024 + r * 2, block, 2);
  return true;
}

// The 32 bytes of row r in a q8 unit, k by k; q is stored as q + 128.
void pack_bytes(const uint8_t (&bytes)[GROUP], const uint8_t* scale, uint8_t* unit, int64_t r) {
  for (int64_t j = 0; j < 8; j++) memcpy(quad(unit, j, r), bytes + 4 * j, 4);
  memcpy(unit + 1024 + r * 2, scale, 2);
}

bool pack_q5_0(const uint8_t* block, uint8_t* unit, int64_t r) {
  const uint32_t fifth = word(block + 2);
  uint8_t bytes[GROUP];
  for (int64_t k = 0; k < GROUP; k++) {
    const uint32_t pair = block[6 + k % 16], low = k < 16 ? pair & 15 : pair >> 4;
    bytes[k] = (uint8_t)((low | (fifth >> k & 1) << 4) + (128 - 16));
  }
  pack_bytes(bytes, block, unit, r);
  return true;
}

bool pack_iq4_nl(const uint8_t* block, uint8_t* unit, int64_t r) {
  // The format's values + 128.
  static const uint8_t values[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};
  uint8_t bytes[GROUP];
  for (int64_t k = 0; k < 16; k++) {
    bytes[k] = values[block[2 + k] & 15];
    bytes[k + 16] = values[block[2 + k] >> 4];
  }
  pack_bytes(bytes, block, unit, r);
  return true;
}

// A file's nibbles are k = 0..15 low, 16..31 high; a unit's are k = 8j..8j+3 low, 8j+4..8j+7 high.
void pack_nibbles(const uint8_t* q, uint8_t* unit, int64_t r) {
  const uint32_t a = word(q), b = word(q + 4), c = word(q + 8), d = word(q + 12);
  put(quad(unit, 0, r), (a & LOW) | (b & LOW) << 4);
  put(quad(unit, 1, r), (c & LOW) | (d & LOW) << 4);
  put(quad(unit, 2, r), (a & HIGH) >> 4 | (b & HIGH));
  put(quad(unit, 3, r), (c & HIGH) >> 4 | (d & HIGH));
}

bool pack_q4_0(const uint8_t* block, uint8_t* unit, int64_t r) {
  pack_nibbles(block + 2, unit, r);
  uint16_t minimum;
  const bool exact = times_minus_8(block, &minimum);
  memcpy(unit + 512 + r * 2, block, 2);
  memcpy(unit + 576 + r * 2, &minimum, 2);
  return exact;
}

bool pack_q4_1(const uint8_t* block, uint8_t* unit, int64_t r) {
  pack_nibbles(block + 4, unit, r);
  memcpy(unit + 512 + r * 2, block, 2);
  memcpy(unit + 576 + r * 2, block + 2, 2);
  return true;
}

// bf16 is packed by pairs of k; a lone last k has zero beside it, which the memory already holds.
bool pack_bf16(const uint8_t* block, uint8_t* half_unit, int64_t r) {
  memcpy(half_unit + r * 4, block, 2);
  return true;
}

const Source SOURCES[] = {
    {"f32", 1, 4, Format::f32, pack_f32},    {"f16", 1, 2, Format::f32, pack_f16},
    {"bf16", 1, 2, Format::bf16, pack_bf16}, {"q4_0", 32, 18, Format::q4, pack_q4_0},
    {"q4_1", 32, 20, Format::q4, pack_q4_1}, {"q5_0", 32, 22, Format::q8, pack_q5_0},
    {"q8_0", 32, 34, Format::q8, pack_q8_0}, {"iq4_nl", 32, 18, Format::q8, pack_iq4_nl},
};

const Source& source(const std::string& name) {
  for (const Source& s : SOURCES)
    if (name == s.name) return s;
  throw std::invalid_argument("the cpu backend has no weight format " + name);
}

Weight shape(const Source& s, int64_t rows, int64_t cols) {
  if (rows < 1 || cols < 1 || rows > INT32_MAX || cols > INT32_MAX || cols % s.block != 0)
    throw std::invalid_argument(std::string(s.name) + " does not fit [" + std::to_string(rows) + ", " +
                                std::to_string(cols) + "]");
  return {nullptr, s.format, rows, cols};
}

bool pack_panel(const Source& s, const Weight& w, const uint8_t* raw, int64_t panel, uint8_t* out) {
  const int64_t blocks = w.cols / s.block, rows = std::min(PANEL, w.rows - panel * PANEL);
  const Layout unit = layout(w.format);
  bool exact = true;
  for (int64_t r = 0; r < rows; r++) {
    const uint8_t* row = raw + (panel * PANEL + r) * blocks * s.bytes;
    for (int64_t b = 0; b < blocks; b++) {
      uint8_t* at =
          w.format == Format::bf16 ? out + b / 2 * unit.unit_bytes + b % 2 * 2 : out + b * unit.unit_bytes;
      exact &= s.pack_block(row + b * s.bytes, at, r);
    }
  }
  return exact;
}

}  // namespace

int64_t packed_bytes(const char* format, int64_t rows, int64_t cols) {
  return shape(source(format), rows, cols).bytes();
}

Weight pack(Pool& pool, const char* format, const uint8_t* raw, size_t raw_bytes, int64_t rows, int64_t cols,
            uint8_t* out) {
  const Source& s = source(format);
  Weight w = shape(s, rows, cols);
  if ((uint64_t)raw_bytes != (uint64_t)(cols / s.block * s.bytes) * (uint64_t)rows)
    throw std::invalid_argument(std::string(s.name) + " weight does not fit its " +
                                std::to_string(raw_bytes) + " bytes");
  std::atomic<bool> exact{true};
  // The same halves as in a step, so that the thread that will read a panel also touches it first.
  pool.run([&](int thread) {
    const int64_t panels = w.panels(), threads = pool.threads();
    for (int64_t p = panels * thread / threads; p < panels * (thread + 1) / threads; p++)
      if (!pack_panel(s, w, raw, p, out + p * w.panel_bytes())) exact = false;
  });
  if (!exact)
    throw std::invalid_argument("a q4_0 scale is too large for a half-precision minimum of -8 * scale");
  w.data = out;
  return w;
}

void unpack_row(const Weight& w, int64_t row, float* out) {
  const int64_t r = row % PANEL, unit_bytes = layout(w.format).unit_bytes;
  const uint8_t* unit = w.panel(row / PANEL);
  switch (w.format) {
    case Format::f32:
      for (int64_t k = 0; k < w.cols; k++, unit += unit_bytes) memcpy(out + k, unit + r * 4, 4);
      return;
    case Format::bf16:
      for (int64_t k = 0; k < w.cols; k++) out[k] = bf16_at(unit + k / 2 * unit_bytes + r * 4 + k % 2 * 2);
      return;
    case Format::q8:
      for (int64_t k = 0; k < w.cols; k += GROUP, unit += unit_bytes) {
        const float scale = half_at(unit + 1024 + r * 2);
        for (int64_t i = 0; i < GROUP; i++)
          out[k + i] = (float)((int)unit[i / 4 * 128 + r * 4 + i % 4] - 128) * scale;
      }
      return;
    case Format::q4:
      for (int64_t k = 0; k < w.cols; k += GROUP, unit += unit_bytes) {
        const float scale = half_at(unit + 512 + r * 2), minimum = half_at(unit + 576 + r * 2);
        for (int64_t i = 0; i < GROUP; i++) {
          const uint8_t pair = unit[i / 8 * 128 + r * 4 + i % 4];
          out[k + i] = scale * (float)(i & 4 ? pair >> 4 : pair & 15) + minimum;
        }
      }
      return;
  }
}

}  // namespace ridgeline
