// Rows shared out between threads: every row is done once a round, whoever does it and however late another
// is.
#pragma once

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "pool.h"
#include "shares.h"

namespace ridgeline {
struct Done {
  std::atomic<uint32_t> round{0}, times{0};
};

inline bool rows_are_done_once(int threads) {
  constexpr uint32_t ROUNDS = 3000;
  constexpr int64_t MOST = 200;
  const auto rows_of = [](uint32_t round) { return int64_t(round * 2654435761u % (MOST + 1)); };
  Pool pool(threads);
  Shares shares(threads);
  std::vector<Done> done(MOST);
  std::atomic<bool> twice{false};
  pool.run([&](int thread) {
    for (uint32_t round = 1; round <= ROUNDS; round++) {
      pool.barrier().wait(thread);
      if (round % 32 == (uint32_t)thread) std::this_thread::sleep_for(std::chrono::microseconds(100));
      shares.run(thread, rows_of(round), [&](Span rows) {
        for (int64_t i = rows.begin; i < rows.end; i++) {
          if (done[i].round.exchange(round) == round) twice = true;
          done[i].times++;
        }
      });
    }
  });
  std::vector<uint32_t> wanted(MOST);
  for (uint32_t round = 1; round <= ROUNDS; round++)
    for (int64_t i = 0; i < rows_of(round); i++) wanted[i]++;
  for (int64_t i = 0; i < MOST; i++)
    if (done[i].times != wanted[i]) return false;
  return !twice;
}

}  // namespace ridgeline
