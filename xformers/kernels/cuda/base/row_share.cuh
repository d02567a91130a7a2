// A thread's share of a row.
//
// A row belongs to a group of threads; thread `rank` of `size` has the vectors rank, rank + size, ... Up to kItems of
// them stay in registers as they came from memory; with kItems 0 each pass reads the row again, through the cache.
#pragma once

#include "xformers/kernels/cuda/base/launch.h"
#include "xformers/kernels/cuda/base/reduce.cuh"
#include "xformers/kernels/cuda/base/stream.h"
#include "xformers/kernels/cuda/base/vector.cuh"

namespace xformers::cuda {

template <class T, int kVec, int kItems>
struct RowShare {
  using C = Compute<T>;
  Packed<T, kVec> items[kItems > 0 ? kItems : 1];
  const T* row = nullptr;

  // Between two passes: the compiler shall convert the elements (and read weights) again instead of keeping them, in
  // twice the registers.
  __device__ __forceinline__ void keep_packed() {
    asm volatile("" ::: "memory");
    if constexpr (kItems > 0 && sizeof(T) * kVec == 16 && sizeof(T) == 2) {
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        uint4& words = reinterpret_cast<uint4&>(items[i]);
        asm volatile("" : "+r"(words.x), "+r"(words.y), "+r"(words.z), "+r"(words.w));
      }
    }
  }

  // Columns from `width` on get `fill`: for rows that are a whole number of vectors. In words where there are some:
  // 16-bit elements would be taken apart and put together, each load waiting for the one before it.
  __device__ __forceinline__ void fetch_or(const T* from, const ThreadGroup& group, int width, T fill) {
    using Word = std::conditional_t<sizeof(T) == 2 && kVec % 2 == 0, uint32_t, T>;
    constexpr int kWords = sizeof(Packed<T, kVec>) / sizeof(Word);
    Packed<T, kVec> filled;
#pragma unroll
    for (int i = 0; i < kVec; ++i) filled.at[i] = fill;
    Packed<Word, kWords> fill_words;
    memcpy(&fill_words, &filled, sizeof(filled));
    row = from;
#pragma unroll
    for (int item = 0; item < kItems; ++item) {
      const int column = (item * group.size + group.rank) * kVec;
      Packed<Word, kWords> words = fill_words;
      if (column < width) words = load<kWords>(reinterpret_cast<const Word*>(from + column));
      memcpy(&items[item], &words, sizeof(words));
    }
  }

  // A row that is not there (valid false) has no columns.
  __device__ __forceinline__ void fetch(const T* from, const ThreadGroup& group, int64_t width, bool valid) {
    row = from;
    if constexpr (kItems > 0) {
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        const int column = (i * group.size + group.rank) * kVec;
        if (valid && column < width) items[i] = load<kVec>(from + column);
      }
    }
  }
};

// A kernel in which groups of threads share rows.
template <class Args>
void launch_rows(void (*kernel)(Args), const RowPlan& plan, int64_t rows, const Args& args, const Stream& where) {
  launch_after(kernel, plan.blocks(rows), 1, plan.threads, static_cast<cudaStream_t>(where.stream), args);
}

// fn(item, column): the columns of this thread, of which there are none where the row is not there.
template <int kVec, int kItems, class Fn>
__device__ __forceinline__ void for_each_vector(const ThreadGroup& group, int64_t width, bool valid, const Fn& fn) {
  if constexpr (kItems > 0) {
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int column = (i * group.size + group.rank) * kVec;
      if (valid && column < width) fn(i, column);
    }
  } else if (valid) {
#pragma unroll 2
    for (int64_t column = int64_t{group.rank} * kVec; column < width; column += int64_t{group.size} * kVec)
      fn(0, column);
  }
}

// The numbers of vector `item`, which begins at `column`.
template <class T, int kVec, int kItems>
__device__ __forceinline__ void numbers_of(const RowShare<T, kVec, kItems>& share, int item, int64_t column,
                                           Compute<T> (&to)[kVec]) {
  if constexpr (kItems > 0) {
    unpack(share.items[item], to);
  } else {
    unpack(load<kVec>(share.row + column), to);
  }
}

}  // namespace xformers::cuda
