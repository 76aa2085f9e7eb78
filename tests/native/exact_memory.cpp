// HugeMemory on the heap, as long as was asked for and no longer, so that a sanitizer sees who reads past its
// end.
#include <string.h>

#include <new>

#include "memory.h"

namespace ridgeline {

constexpr std::align_val_t ALIGN{4096};

HugeMemory::HugeMemory(size_t bytes, bool)
    : mapped_(::operator new(bytes, ALIGN)), mapped_bytes_(bytes), bytes_(bytes), data_((uint8_t*)mapped_) {
  memset(mapped_, 0, bytes);
}

HugeMemory::~HugeMemory() {
  ::operator delete(mapped_, ALIGN);
}

}  // namespace ridgeline
