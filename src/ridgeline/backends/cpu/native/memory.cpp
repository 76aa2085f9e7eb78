#include "memory.h"

#include <sys/mman.h>

#include <new>

namespace ridgeline {

constexpr size_t HUGE_PAGE = size_t(2) << 20;

HugeMemory::HugeMemory(size_t bytes, bool huge)
    : mapped_bytes_((bytes + 2 * HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE), bytes_(bytes) {
  if (mapped_bytes_ < bytes) throw std::bad_alloc();
  mapped_ = mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped_ == MAP_FAILED) throw std::bad_alloc();
  data_ = (uint8_t*)(((uintptr_t)mapped_ + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE);
#ifdef MADV_HUGEPAGE
  madvise(data_, mapped_bytes_ - (size_t)(data_ - (uint8_t*)mapped_),
          huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);  // a wish; refusal is fine
#endif
}

HugeMemory::~HugeMemory() {
  munmap(mapped_, mapped_bytes_);
}

}  // namespace ridgeline
