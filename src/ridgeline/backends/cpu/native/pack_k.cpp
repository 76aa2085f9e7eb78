// GGUF's blocks of 256 weights, without loss: codes go to units, the small integer scales behind them, the
// block's own half-precision scales to the tail.
#include "blocks.h"

namespace ridgeline {
namespace {

constexpr int64_t WEIGHTS = 256;

// A block as its parts. Scales are stored plus 128 where the layout has them signed.
struct Block {
  uint8_t codes[WEIGHTS], scales[16], minima[16];
  const uint8_t *d, *dmin;  // halfs; dmin null where there are no minima
};

void put_block(const Layout& l, const Block& b, const Place& at) {
  const int64_t per_unit = l.unit() / l.group;
  for (int64_t u = 0; u < WEIGHTS / l.unit(); u++) {
    uint8_t* unit = at.unit + u * l.unit_bytes();
    put_codes(l, b.codes + u * l.unit(), unit, at.row);
    uint8_t* scale = unit + l.code_bytes() + at.row;
    for (int64_t g = u * per_unit; g < (u + 1) * per_unit; g++, scale += l.group_scale_bytes()) {
      scale[0] = b.scales[g];
      if (b.dmin) scale[PANEL] = b.minima[g];
    }
  }
  memcpy(at.tail + at.row * 2, b.d, 2);
  if (b.dmin) memcpy(at.tail + PANEL * 2 + at.row * 2, b.dmin, 2);
}

// `bits` of weight k, of a plane whose bytes hold `per_byte` fields: fields of equal place in a run of `run`
// bytes follow each other.
uint8_t field(const uint8_t* plane, int64_t k, int64_t run, int64_t bits) {
  const int64_t per_byte = 8 / bits, chunk = k / (run * per_byte), within = k % (run * per_byte);
  return (uint8_t)(plane[chunk * run + within % run] >> (within / run * bits) & ((1 << bits) - 1));
}

// 8 scales and 8 minima of 6 bits in 12 bytes: the top 2 bits of bytes 0..7 belong to the last four of each.
void read_scales_and_minima(const uint8_t* p, Block& b) {
  for (int64_t g = 0; g < 4; g++) {
    b.scales[g] = p[g] & 63;
    b.minima[g] = p[4 + g] & 63;
    b.scales[4 + g] = (uint8_t)((p[8 + g] & 15) | (p[g] >> 6) << 4);
    b.minima[4 + g] = (uint8_t)((p[8 + g] >> 4) | (p[4 + g] >> 6) << 4);
  }
}

}  // namespace

void pack_q2_k(const Layout& l, const uint8_t* block, const Place& at) {
  Block b;
  b.d = block + 80, b.dmin = block + 82;
  for (int64_t g = 0; g < 16; g++) b.scales[g] = block[g] & 15, b.minima[g] = block[g] >> 4;
  for (int64_t k = 0; k < WEIGHTS; k++) b.codes[k] = field(block + 16, k, 32, 2);
  put_block(l, b, at);
}

void pack_q3_k(const Layout& l, const uint8_t* block, const Place& at) {
  Block b;
  b.d = block + 108, b.dmin = nullptr;
  for (int64_t g = 0; g < 16; g++)
    b.scales[g] = (uint8_t)((field(block + 96, g, 8, 4) | field(block + 104, g, 4, 2) << 4) + 128 - 32);
  for (int64_t k = 0; k < WEIGHTS; k++)
    b.codes[k] = (uint8_t)(field(block + 32, k, 32, 2) | field(block, k, 32, 1) << 2);
  put_block(l, b, at);
}

void pack_q4_k(const Layout& l, const uint8_t* block, const Place& at) {
  Block b;
  b.d = block, b.dmin = block + 2;
  read_scales_and_minima(block + 4, b);
  for (int64_t k = 0; k < WEIGHTS; k++) b.codes[k] = field(block + 16, k, 32, 4);
  put_block(l, b, at);
}

void pack_q5_k(const Layout& l, const uint8_t* block, const Place& at) {
  Block b;
  b.d = block, b.dmin = block + 2;
  read_scales_and_minima(block + 4, b);
  for (int64_t k = 0; k < WEIGHTS; k++)
    b.codes[k] = (uint8_t)(field(block + 48, k, 32, 4) | field(block + 16, k, 32, 1) << 4);
  put_block(l, b, at);
}

void pack_q6_k(const Layout& l, const uint8_t* block, const Place& at) {
  Block b;
  b.d = block + 208, b.dmin = nullptr;
  for (int64_t g = 0; g < 16; g++) b.scales[g] = block[192 + g] ^ 0x80;
  for (int64_t k = 0; k < WEIGHTS; k++)
    b.codes[k] = (uint8_t)((field(block, k, 64, 4) | field(block + 128, k, 32, 2) << 4) + 128 - 32);
  put_block(l, b, at);
}

void pack_iq4_xs(const Layout& l, const uint8_t* block, const Place& at) {
  Block b;
  b.d = block, b.dmin = nullptr;
  for (int64_t g = 0; g < 8; g++) {
    const int64_t high = block[2 + g / 4] >> (g % 4 * 2) & 3;
    b.scales[g] = (uint8_t)((field(block + 4, g, 1, 4) | high << 4) + 128 - 32);
  }
  for (int64_t k = 0; k < WEIGHTS; k++) b.codes[k] = (uint8_t)(IQ4_VALUES[field(block + 8, k, 16, 4)] + 128);
  put_block(l, b, at);
}

}  // namespace ridgeline
