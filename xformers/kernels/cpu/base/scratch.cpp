#include "xformers/kernels/cpu/base/scratch.h"

#include <new>

namespace xformers::cpu {
namespace {

constexpr size_t kKeptBytes = size_t{16} << 20;

struct Buffer {
  char* data = nullptr;
  size_t size = 0;

  void release() {
    if (data) ::operator delete(data, std::align_val_t{kScratchAlign});
    data = nullptr;
    size = 0;
  }
  ~Buffer() { release(); }
};

thread_local Buffer buffer;

}  // namespace

ThreadScratch::ThreadScratch(size_t bytes) {
  if (bytes > buffer.size) {
    buffer.release();
    buffer.data = static_cast<char*>(::operator new(bytes, std::align_val_t{kScratchAlign}));
    buffer.size = bytes;
  }
  data_ = buffer.data;
}

ThreadScratch::~ThreadScratch() {
  if (buffer.size > kKeptBytes) buffer.release();
}

}  // namespace xformers::cpu
