#include "xformers/kernels/cpu/base/scratch.h"

#include <new>

namespace xformers::cpu {
namespace {

constexpr size_t kKeptBytes = size_t{16} << 20;

char* allocate(size_t bytes) { return static_cast<char*>(::operator new(bytes, std::align_val_t{kScratchAlign})); }
void deallocate(char* data) { ::operator delete(data, std::align_val_t{kScratchAlign}); }

struct Buffer {
  char* data = nullptr;
  size_t size = 0;
  bool taken = false;

  void release() {
    if (data) deallocate(data);
    data = nullptr;
    size = 0;
  }
  ~Buffer() { release(); }
};

thread_local Buffer buffer;

}  // namespace

ThreadScratch::ThreadScratch(size_t bytes) : own_(buffer.taken) {
  if (own_) {
    data_ = allocate(bytes);
    return;
  }
  if (bytes > buffer.size) {
    buffer.release();
    buffer.data = allocate(bytes);
    buffer.size = bytes;
  }
  data_ = buffer.data;
  buffer.taken = true;
}

ThreadScratch::~ThreadScratch() {
  if (own_) {
    deallocate(data_);
    return;
  }
  buffer.taken = false;
  if (buffer.size > kKeptBytes) buffer.release();
}

}  // namespace xformers::cpu
