// Large memory on huge pages where the system grants them; zero on arrival, first touched by who fills it.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace ridgeline {

class HugeMemory {
 public:
  // Throws std::bad_alloc when the system has no such memory. Without `huge`, what is touched here and there
  // takes no more than it needs.
  explicit HugeMemory(size_t bytes, bool huge = true);
  ~HugeMemory();
  HugeMemory(const HugeMemory&) = delete;
  HugeMemory& operator=(const HugeMemory&) = delete;

  uint8_t* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  void* mapped_;
  size_t mapped_bytes_, bytes_;
  uint8_t* data_;
};

}  // namespace ridgeline
