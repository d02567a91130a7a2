// Sums and maxima over threads. The order of the operations is fixed, and all threads get the same bits.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace xformers::cuda {

struct Sum {
  static constexpr double kIdentity = 0;
  template <class C>
  __device__ __forceinline__ C operator()(C a, C b) const {
    return a + b;
  }
};

struct Max {  // of numbers: NaN is passed over
  static constexpr double kIdentity = -__builtin_huge_val();
  template <class C>
  __device__ __forceinline__ C operator()(C a, C b) const {
    return max(a, b);
  }
};

// Several values at once over aligned groups of `lanes` lanes, a power of two up to 32. All lanes of the warp take part
// in all steps: steps that a smaller group does not need are dropped by selection, for branches would put them in a
// row.
template <class Op, class C, int kValues>
__device__ __forceinline__ void warp_reduce(C (&x)[kValues], Op op, int lanes = 32) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    C other[kValues];
#pragma unroll
    for (int i = 0; i < kValues; ++i) other[i] = __shfl_xor_sync(0xffffffffu, x[i], step);
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      const C both = op(x[i], other[i]);
      x[i] = step < lanes ? both : x[i];
    }
  }
}

template <class Op, class C>
__device__ __forceinline__ C warp_reduce(C x, Op op, int lanes = 32) {
  C values[1] = {x};
  warp_reduce(values, op, lanes);
  return values[0];
}

// Neighbouring threads of a block that work on one row: a power of two up to 32, or whole warps (a multiple of 32 that
// divides the block; at most 15 such groups in a block).
struct ThreadGroup {
  int size;   // threads
  int rank;   // of this thread
  int index;  // of this group in the block

  __device__ __forceinline__ explicit ThreadGroup(int size)
      : size(size), rank(static_cast<int>(threadIdx.x) % size), index(static_cast<int>(threadIdx.x) / size) {}

  // Whether any thread of the group says so; of groups that share a warp, whether any of those does. A group agrees on
  // what it says.
  __device__ __forceinline__ bool any(bool says) const {
    return size >= 32 ? says : static_cast<bool>(__any_sync(0xffffffffu, says));
  }

  // Only for groups of several warps to wait for each other; the other groups of the block go on.
  __device__ __forceinline__ void sync() const {
    asm volatile("bar.sync %0, %1;" ::"r"(index + 1), "r"(size) : "memory");
  }
};

// Reductions over a group, several values at once. All threads of the block construct it, and all threads of a group
// call reduce() alike. Two buffers take turns, so that a reduction costs one barrier (none within a warp).
template <class C, int kMaxValues>
class GroupReduce {
 public:
  struct Shared {
    C partial[2][kMaxValues][32];  // one per warp of the block
  };

  __device__ __forceinline__ GroupReduce(Shared& shared, const ThreadGroup& group) : shared_(shared), group_(group) {}

  template <class Op, int kValues>
  __device__ __forceinline__ void operator()(C (&values)[kValues], Op op) {
    static_assert(kValues <= kMaxValues);
    warp_reduce(values, op, group_.size < 32 ? group_.size : 32);
    if (group_.size <= 32) return;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int warps = group_.size / 32, first = group_.index * warps;
    if (lane == 0) {
#pragma unroll
      for (int i = 0; i < kValues; ++i) shared_.partial[turn_][i][warp] = values[i];
    }
    group_.sync();
#pragma unroll
    for (int i = 0; i < kValues; ++i)
      values[i] = lane < warps ? shared_.partial[turn_][i][first + lane] : static_cast<C>(Op::kIdentity);
    warp_reduce(values, op);
    turn_ ^= 1;
  }

 private:
  Shared& shared_;
  ThreadGroup group_;
  int turn_ = 0;
};

}  // namespace xformers::cuda
