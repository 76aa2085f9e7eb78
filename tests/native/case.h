// A test case as tests/cpu/cases.py writes it: a program, its parameters, and batches with what each should
// leave.
//
// A file is little-endian int64 words and blobs; a blob is its length in bytes, then the bytes, padded to
// whole words:
//   magic, tolerance, record, count of weights {format, rows, columns, raw bytes}, count of vectors {floats},
//   count of batches {buffer, count of regions {offset, stride, width, rows, is float, expected bytes}}
#pragma once

#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <stdexcept>
#include <string>
#include <vector>

namespace ridgeline {

using Blob = std::vector<uint8_t>;

struct RawWeight {
  std::string format;
  int64_t rows, cols;
  Blob raw;
};

// `width` bytes of each of `rows` rows of the arena, `stride` bytes apart.
struct Region {
  int64_t offset, stride, width, rows;
  bool is_float;
  Blob expected;
};

struct TestBatch {
  Blob buffer;
  std::vector<Region> regions;
};

struct Case {
  int64_t tolerance_ppm;  // of floats at other levels than the expected values', of the largest one
  std::vector<int64_t> record;
  std::vector<RawWeight> weights;
  std::vector<std::vector<float>> vectors;
  std::vector<TestBatch> batches;
};

class CaseReader {
 public:
  explicit CaseReader(const std::string& path) {
    FILE* file = fopen(path.c_str(), "rb");
    if (!file) throw std::runtime_error("cannot open " + path);
    uint8_t part[1 << 16];
    for (size_t n; (n = fread(part, 1, sizeof part, file)) > 0;) all_.insert(all_.end(), part, part + n);
    fclose(file);
  }

  Case read() {
    if (word() != 0x4354'4c52) throw std::runtime_error("not a test case");
    Case c{word(), items<int64_t>(), {}, {}, {}};
    for (int64_t n = word(); n > 0; n--) {
      const Blob format = blob();
      const int64_t rows = word(), cols = word();
      c.weights.push_back({std::string(format.begin(), format.end()), rows, cols, blob()});
    }
    for (int64_t n = word(); n > 0; n--) c.vectors.push_back(items<float>());
    for (int64_t n = word(); n > 0; n--) c.batches.push_back(batch());
    return c;
  }

 private:
  TestBatch batch() {
    TestBatch b{blob(), {}};
    for (int64_t n = word(); n > 0; n--) {
      const int64_t offset = word(), stride = word(), width = word(), rows = word();
      const bool is_float = word() != 0;
      b.regions.push_back({offset, stride, width, rows, is_float, blob()});
    }
    return b;
  }

  const uint8_t* take(int64_t bytes) {
    if (bytes < 0 || bytes > (int64_t)all_.size() - at_)
      throw std::runtime_error("a test case ends too early");
    const uint8_t* from = all_.data() + at_;
    at_ += bytes;
    return from;
  }

  int64_t word() {
    int64_t x;
    memcpy(&x, take(8), 8);
    return x;
  }

  Blob blob() {
    const int64_t n = word();
    const uint8_t* from = take((n + 7) / 8 * 8);
    return Blob(from, from + n);
  }

  template <class T>
  std::vector<T> items() {
    const Blob bytes = blob();
    std::vector<T> x(bytes.size() / sizeof(T));
    if (!x.empty()) memcpy(x.data(), bytes.data(), x.size() * sizeof(T));
    return x;
  }

  Blob all_;
  int64_t at_ = 0;
};

}  // namespace ridgeline
