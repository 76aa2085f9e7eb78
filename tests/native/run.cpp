// Runs test cases (case.h) at every ISA level this machine has and with 1 to 4 threads: results of a level
// must be the same bits for any number of threads, and near what the Python module gave at level portable.
//
//   native_test [--level LEVEL] [--threads N] CASE...     N: the most threads
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include <memory>
#include <thread>

#include "case.h"
#include "shared_rows.h"
#include "step.h"

namespace ridgeline {
namespace {

// A case's parameters packed, and its memory as it is before the first batch: NaN wherever nothing was
// written.
struct Loaded {
  Pool& pool;
  std::vector<std::unique_ptr<HugeMemory>> panels;
  std::vector<Weight> packed;
  std::vector<const Weight*> weights;
  std::vector<Vector> vectors;
  std::unique_ptr<HugeMemory> kv, arena;
  std::unique_ptr<Step> step;

  Loaded(Pool& pool, const Kernels& kernels, const Case& c) : pool(pool) {
    for (const RawWeight& w : c.weights) {
      panels.push_back(std::make_unique<HugeMemory>(packed_bytes(w.format.c_str(), w.rows, w.cols)));
      packed.push_back(
          pack(pool, w.format.c_str(), w.raw.data(), w.raw.size(), w.rows, w.cols, panels.back()->data()));
    }
    for (const Weight& w : packed) weights.push_back(&w);
    for (const std::vector<float>& v : c.vectors) vectors.push_back({v.data(), (int64_t)v.size()});
    Program p = decode(c.record.data(), (int64_t)c.record.size(), weights, vectors);
    kv = std::make_unique<HugeMemory>(Step::kv_bytes(p));
    arena = std::make_unique<HugeMemory>(p.arena_bytes);
    memset(kv->data(), 0xff, kv->bytes());
    memset(arena->data(), 0xff, arena->bytes());
    step = std::make_unique<Step>(pool, kernels, std::move(p), weights, vectors, kv->data(), arena->data());
  }

  // A step that the pool would rather run alone, as its threads have waited long, is run by all in its
  // profile.
  void run(const Blob& batch) {
    if (pool.crowded())
      step->profile(batch.data(), (int64_t)batch.size());
    else
      step->run(batch.data(), (int64_t)batch.size());
  }
};

Blob cut_out(const uint8_t* arena, const Region& r) {
  Blob out;
  for (int64_t i = 0; i < r.rows; i++)
    out.insert(out.end(), arena + r.offset + i * r.stride, arena + r.offset + i * r.stride + r.width);
  return out;
}

// The largest difference of floats relative to the largest finite one, in millionths; unequal infinities are
// 1e12.
double apart_ppm(const Blob& a, const Blob& b) {
  double most = 0, largest = 1e-30;
  for (size_t at = 0; at + 4 <= a.size(); at += 4) {
    float x, y;
    memcpy(&x, &a[at], 4);
    memcpy(&y, &b[at], 4);
    if (isfinite(y)) largest = fmax(largest, fabs(y));
    if (memcmp(&x, &y, 4) != 0) most = fmax(most, isfinite(x) && isfinite(y) ? fabs(x - y) : 1e30);
  }
  return fmin(most / largest * 1e6, 1e12);
}

struct Run {
  const std::string& path;
  const Kernels& kernels;
  int threads;

  bool fail(size_t batch, size_t region, const char* why, double by) const {
    printf("%s: level %s, %d threads, batch %zu, region %zu: %s (%g)\n", path.c_str(), kernels.isa, threads,
           batch, region, why, by);
    return false;
  }

  // All results of all batches, in order, each checked against what was expected.
  bool run(const Case& c, std::vector<Blob>& results) const {
    Pool pool(threads);
    Loaded loaded(pool, kernels, c);
    bool good = true;
    for (size_t b = 0; b < c.batches.size(); b++) {
      loaded.run(c.batches[b].buffer);
      for (size_t r = 0; r < c.batches[b].regions.size(); r++) {
        const Region& region = c.batches[b].regions[r];
        results.push_back(cut_out(loaded.arena->data(), region));
        const double apart = region.is_float ? apart_ppm(results.back(), region.expected) : 0;
        if (apart > (double)c.tolerance_ppm)
          good = fail(b, r, "far from what is expected, millionths", apart);
      }
    }
    return good;
  }
};

bool run_case(const std::string& path, const Kernels& kernels, int most_threads) {
  const Case c = CaseReader(path).read();
  std::vector<Blob> first;
  bool good = true;
  for (int threads = 1; threads <= most_threads; threads++) {
    const Run run{path, kernels, threads};
    std::vector<Blob> results;
    good &= run.run(c, results);
    if (threads == 1) first = results;
    for (size_t r = 0; r < results.size(); r++)
      if (results[r] != first[r])
        good = run.fail(r / c.batches[0].regions.size(), r % c.batches[0].regions.size(),
                        "other bits than with one thread", apart_ppm(results[r], first[r]));
  }
  return good;
}

}  // namespace
}  // namespace ridgeline

int main(int count, char** words) {
  using namespace ridgeline;
  std::vector<std::string> levels{"portable", "avx2", "avx512", "avx512bf16"}, paths;
  int most_threads = 4;
  for (int i = 1; i < count; i++) {
    const std::string word = words[i];
    if (word == "--level" && i + 1 < count)
      levels = {words[++i]};
    else if (word == "--threads" && i + 1 < count)
      most_threads = atoi(words[++i]);
    else
      paths.push_back(word);
  }
  bool good = !paths.empty();
  for (int threads = 1; threads <= most_threads; threads++)
    if (!rows_are_done_once(threads)) {
      printf("rows shared between %d threads were not done once each\n", threads);
      good = false;
    }
  for (const std::string& level : levels) {
    const Kernels* kernels = find_kernels(level.c_str());
    if (!kernels) {
      printf("level %s: not on this machine\n", level.c_str());
      continue;
    }
    for (const std::string& path : paths) good &= run_case(path, *kernels, most_threads);
    printf("level %s: %zu cases\n", level.c_str(), paths.size());
    fflush(stdout);
  }
  printf(good ? "all good\n" : "FAILED\n");
  return good ? 0 : 1;
}
