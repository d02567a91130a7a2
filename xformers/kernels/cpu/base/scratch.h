// Working memory of one call: a buffer that stays with the calling thread, so that small problems cost no allocation
// and no page faults, and an arena that lays arrays out in it.
#pragma once

#include <cstddef>

namespace xformers::cpu {

inline constexpr size_t kScratchAlign = 64;

// Owns this thread's buffer for the length of a call: at least `bytes` bytes, 64-byte aligned, uninitialised. A buffer
// above 16 MiB is given back at the end. While it is taken, whoever asks for another on the same thread (a call from
// within a task) gets memory of its own. Throws std::bad_alloc.
class ThreadScratch {
 public:
  explicit ThreadScratch(size_t bytes);
  ~ThreadScratch();
  ThreadScratch(const ThreadScratch&) = delete;
  ThreadScratch& operator=(const ThreadScratch&) = delete;

  char* data() const { return data_; }

 private:
  char* data_;
  bool own_;  // not the thread's
};

// Hands out aligned arrays one after the other. With base null it only counts: bytes() then says what a second run over
// a real buffer needs.
class Arena {
 public:
  __attribute__((always_inline)) explicit Arena(void* base = nullptr) : base_(static_cast<char*>(base)) {}

  template <class T>
  __attribute__((always_inline)) T* take(size_t count) {
    T* array = base_ ? reinterpret_cast<T*>(base_ + used_) : nullptr;
    used_ += (count * sizeof(T) + kScratchAlign - 1) / kScratchAlign * kScratchAlign;
    return array;
  }
  __attribute__((always_inline)) size_t bytes() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

}  // namespace xformers::cpu
