#include "tests/kernels/guarded_buffer.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

namespace xformers::testing {

GuardedBuffer::GuardedBuffer(size_t bytes) : bytes_(bytes) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t usable = (bytes + page - 1) / page * page;
  mapped_bytes_ = usable + page;
  void* mapped =
      mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "mmap of a test buffer");
  mapped_ = static_cast<unsigned char*>(mapped);
  data_ = mapped_ + usable - bytes;
  if (mprotect(mapped_ + usable, page, PROT_NONE) != 0) {
    throw std::system_error(errno, std::generic_category(), "mprotect of a guard page");
  }
}

GuardedBuffer::~GuardedBuffer() { munmap(mapped_, mapped_bytes_); }

}  // namespace xformers::testing
