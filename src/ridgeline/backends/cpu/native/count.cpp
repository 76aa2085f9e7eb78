#ifdef RIDGELINE_COUNT
#include "counts.h"

#include <map>
#include <mutex>
#include <set>
#include <tuple>

namespace ridgeline {
namespace {

std::mutex mutex;
std::map<std::string, Counts> totals;
std::set<std::tuple<const void*, const void*, Counted>> touched;
std::map<std::pair<const void*, const void*>, uint64_t> keys;  // of a page, by instruction and block

thread_local const void* instr = nullptr;
thread_local const char* op = "";

void add(Counted kind, int64_t n) {
  totals[op][(size_t)kind] += n;
}

}  // namespace

void counting(const void* now, const char* name) {
  instr = now;
  op = name;
}

void count(Counted kind, int64_t n) {
  std::lock_guard<std::mutex> lock(mutex);
  add(kind, n);
}

void count_once(Counted kind, const void* at, int64_t bytes) {
  std::lock_guard<std::mutex> lock(mutex);
  add(touched.emplace(instr, at, kind).second ? kind : Counted::again, bytes);
}

void count_keys(const void* block, int64_t from, int64_t to, int64_t key_bytes) {
  std::lock_guard<std::mutex> lock(mutex);
  uint64_t& seen = keys[{instr, block}];
  const uint64_t wanted = (to - from == 64 ? ~uint64_t(0) : (uint64_t(1) << (to - from)) - 1) << from;
  add(Counted::kv_read, __builtin_popcountll(wanted & ~seen) * key_bytes);
  add(Counted::again, __builtin_popcountll(wanted & seen) * key_bytes);
  seen |= wanted;
}

std::map<std::string, Counts> take_counts() {
  std::lock_guard<std::mutex> lock(mutex);
  touched.clear();
  keys.clear();
  std::map<std::string, Counts> taken;
  taken.swap(totals);
  return taken;
}

}  // namespace ridgeline
#endif
