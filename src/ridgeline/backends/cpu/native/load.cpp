#include "load.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace ridgeline {
namespace {

constexpr int64_t CHUNK = 256 << 10;  // bytes read at once: still in the thread's cache when they are summed

uint64_t sum_words(const uint8_t* data, int64_t bytes, int64_t first) {
  uint64_t sum = 0;
  for (int64_t i = 0; i < bytes / 8; i++) {
    uint64_t word;
    memcpy(&word, data + i * 8, 8);
    sum += word * (uint64_t)(2 * (first + i) + 1);
  }
  return sum;
}

bool read_all(int fd, uint8_t* out, int64_t bytes, int64_t at) {
  while (bytes > 0) {
    const ssize_t n = pread(fd, out, (size_t)bytes, (off_t)at);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    out += n, at += n, bytes -= n;
  }
  return true;
}

// Calls visit(w, from, to) on each thread's share of each weight, cut in chunks; the same shares as in
// packing and in a step.
template <class Visit>
std::vector<uint64_t> shared(Pool& pool, const std::vector<Stored>& weights, const Visit& visit) {
  std::vector<std::atomic<uint64_t>> sums(weights.size());
  pool.run([&](int thread) {
    for (size_t p = 0; p < weights.size(); p++) {
      const Stored& w = weights[p];
      const Span mine = share(w.bytes / w.panel_bytes, thread, pool.threads());
      const int64_t stop = mine.end * w.panel_bytes;
      uint64_t sum = 0;
      for (int64_t at = mine.begin * w.panel_bytes; at < stop; at += CHUNK)
        sum += visit(w, at, std::min(at + CHUNK, stop));
      sums[p].fetch_add(sum, std::memory_order_relaxed);
    }
  });
  return std::vector<uint64_t>(sums.begin(), sums.end());
}

}  // namespace

std::vector<uint64_t> checksums(Pool& pool, const uint8_t* memory, const std::vector<Stored>& weights) {
  return shared(pool, weights, [&](const Stored& p, int64_t from, int64_t to) {
    return sum_words(memory + p.offset + from, to - from, from / 8);
  });
}

std::vector<uint64_t> read_panels(Pool& pool, int fd, int64_t start, uint8_t* memory,
                                  const std::vector<Stored>& weights) {
  std::atomic<bool> good{true};
  auto sums = shared(pool, weights, [&](const Stored& p, int64_t from, int64_t to) -> uint64_t {
    uint8_t* out = memory + p.offset + from;
    if (good && !read_all(fd, out, to - from, start + p.offset + from)) good = false;
    return good ? sum_words(out, to - from, from / 8) : 0;
  });
  if (!good) throw std::runtime_error("the file of packed weights ends early or cannot be read");
  return sums;
}

}  // namespace ridgeline
