// Memory that ends at an inaccessible page: reading or writing one byte past the end stops the program. Untouched pages
// cost nothing, so buffers may be far larger than the machine.
#pragma once

#include <cstddef>

namespace xformers::testing {

class GuardedBuffer {
 public:
  explicit GuardedBuffer(size_t bytes);
  ~GuardedBuffer();
  GuardedBuffer(const GuardedBuffer&) = delete;
  GuardedBuffer& operator=(const GuardedBuffer&) = delete;

  unsigned char* data() const { return data_; }
  size_t size() const { return bytes_; }

 private:
  size_t bytes_, mapped_bytes_;
  unsigned char *mapped_, *data_;
};

}  // namespace xformers::testing
