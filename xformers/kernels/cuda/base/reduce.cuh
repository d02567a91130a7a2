// Sums and maxima over threads. The order of the operations is fixed, and all threads get the same bits.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "xformers/kernels/cuda/base/row_plan.h"

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

// Over a whole warp: kValues values (a power of two) leave one lane in 32 / kValues with the sum of each, lane
// v * 32 / kValues with that of value v. A step that sends one half of the values for the other halves their number.
template <class Op, class C, int kValues>
__device__ __forceinline__ C warp_reduce_apart(const C (&x)[kValues], Op op, int lane, int step = 16) {
  if constexpr (kValues == 1) {
    C sum = x[0];
#pragma unroll
    for (; step > 0; step /= 2) sum = op(sum, __shfl_xor_sync(0xffffffffu, sum, step));
    return sum;
  } else {
    constexpr int kHalf = kValues / 2;
    const bool upper = lane & step;
    C kept[kHalf];
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      const C sent = upper ? x[i] : x[kHalf + i];
      kept[i] = op(upper ? x[kHalf + i] : x[i], __shfl_xor_sync(0xffffffffu, sent, step));
    }
    return warp_reduce_apart(kept, op, lane, step / 2);
  }
}

// Neighbouring threads of a block that work on one row: a power of two, or the whole block (of whole warps).
struct ThreadGroup {
  int size;   // threads
  int rank;   // of this thread
  int index;  // of this group in the block

  __device__ __forceinline__ explicit ThreadGroup(const RowPlan& plan)
      : size(plan.group),
        rank(static_cast<int>(threadIdx.x & ((1u << plan.shift) - 1))),
        index(static_cast<int>(threadIdx.x >> plan.shift)) {}

  __device__ __forceinline__ bool owns_block() const { return size == static_cast<int>(blockDim.x); }

  // Whether any thread of the group says so; of groups that share a warp, or whose warps share a block, whether any of
  // those does: they have to do alike. A group agrees on what it says.
  __device__ __forceinline__ bool any(bool says) const {
    if (size < 32) return static_cast<bool>(__any_sync(0xffffffffu, says));
    return size == 32 || owns_block() ? says : static_cast<bool>(__syncthreads_or(says));
  }
};

// Reductions over a group, several values at once. All threads of the block construct it and call it alike, as they
// share its barrier (named barriers would let groups of a block go their own ways, but a kernel with 16 of them runs in
// at most four blocks per multiprocessor). Two buffers take turns, so that a reduction costs one barrier (none within a
// warp).
template <class C, int kMaxValues>
class GroupReduce {
 public:
  struct Shared {
    C partial[2][kMaxValues][32];  // one per warp of the block
  };

  __device__ __forceinline__ GroupReduce(Shared& shared, const ThreadGroup& group) : shared_(shared), group_(group) {}

  template <class Op, int kValues>
  __device__ __forceinline__ void operator()(C (&values)[kValues], Op op) {
    static_assert(kValues <= kMaxValues && (kValues & (kValues - 1)) == 0);
    if (group_.size < 32) {
      warp_reduce(values, op, group_.size);
      return;
    }
    constexpr int kLanes = 32 / kValues;  // of a value
    const int lane = threadIdx.x % 32, value = lane / kLanes;
    C sum = warp_reduce_apart(values, op, lane);
    if (group_.size > 32) {
      const int warps = group_.size / 32, first = group_.index * warps;
      if (lane % kLanes == 0) shared_.partial[turn_][value][threadIdx.x / 32] = sum;
      __syncthreads();
      sum = static_cast<C>(Op::kIdentity);
#pragma unroll
      for (int turn = 0; turn < kValues; ++turn) {
        const int warp = turn * kLanes + lane % kLanes;
        if (warp < warps) sum = op(sum, shared_.partial[turn_][value][first + warp]);
      }
#pragma unroll
      for (int step = kLanes / 2; step > 0; step /= 2) sum = op(sum, __shfl_xor_sync(0xffffffffu, sum, step));
      turn_ ^= 1;
    }
#pragma unroll
    for (int i = 0; i < kValues; ++i) values[i] = kValues == 1 ? sum : __shfl_sync(0xffffffffu, sum, i * kLanes);
  }

  // After a reduction that gave `total` as its first value: whether any group says so that has to do as this one does.
  // Without a barrier: where it would take one, says is asked of what each warp of the block contributed, not of
  // totals.
  template <class Says>
  __device__ __forceinline__ bool any_part(C total, const Says& says) const {
    if (group_.size <= 32 || group_.owns_block()) return group_.any(says(total));
    const int lane = threadIdx.x % 32;
    return static_cast<bool>(
        __any_sync(0xffffffffu, lane * 32 < static_cast<int>(blockDim.x) && says(shared_.partial[turn_ ^ 1][0][lane])));
  }

 private:
  Shared& shared_;
  ThreadGroup group_;
  int turn_ = 0;
};

}  // namespace xformers::cuda
