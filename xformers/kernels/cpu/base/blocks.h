// Memory-bound work in portions that are worth a thread. Free of std templates: units of all instruction sets include
// it.
#pragma once

#include <cstdint>

#include "xformers/kernels/cpu/base/parallel_for.h"

namespace xformers::cpu {

inline constexpr int64_t kBlockBytes = 64 << 10, kMostBlockBytes = 1 << 20;

// How much a portion of work that moves `bytes` in all should move: more where there is much, since each portion starts
// without what prefetching would have brought.
__attribute__((always_inline)) inline constexpr int64_t block_bytes(int64_t bytes) {
  const int64_t portion = bytes / 256;
  return portion < kBlockBytes ? kBlockBytes : portion > kMostBlockBytes ? kMostBlockBytes : portion;
}

// Results of this size don't fit the caches of the cores that read them next: they are written past the caches, which
// saves reading their memory first.
inline constexpr int64_t kStreamBytes = 8 << 20;

// fn(begin, end) on consecutive blocks of [0, count), each of which moves about block_bytes(). Blocks depend on the
// arguments alone, not on the threads.
template <class Fn>
void for_each_block(const Threads& threads, int64_t count, int64_t bytes_per_item, const Fn& fn) {
  int64_t block = bytes_per_item > 0 ? block_bytes(count * bytes_per_item) / bytes_per_item : count;
  if (block < 1) block = 1;
  for_each_task(threads, (count + block - 1) / block, [&](int64_t task, int) {
    const int64_t begin = task * block, end = begin + block;
    fn(begin, end < count ? end : count);
  });
}

}  // namespace xformers::cpu
