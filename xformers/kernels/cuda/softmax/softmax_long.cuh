// Softmax of rows too long for registers. A block takes a row; what every pass needs stays in shared memory (kStays) as
// far as that holds it, each thread's vectors where it alone writes and reads them. The rest is read again, through the
// L2 cache.
#pragma once

#include "xformers/kernels/cuda/base/async_copy.cuh"
#include "xformers/kernels/cuda/base/device.h"
#include "xformers/kernels/cuda/base/launch.h"
#include "xformers/kernels/cuda/softmax/softmax_row.cuh"

namespace xformers::cuda {

constexpr int kLongThreads = 512;
template <class T, bool kStays>
constexpr int kLongBlocks = kStays && sizeof(T) < 8 ? 3 : 2;  // per multiprocessor

// One row as the threads of a block see it.
template <class T, int kVec, bool kStays>
struct LongRow {
  const T* row;
  T* stay;  // [width]

  __device__ __forceinline__ LongRow(const T* row, void* smem, int64_t visible)
      : row(row), stay(static_cast<T*>(smem)) {
    if constexpr (kStays) {
#pragma unroll 4
      for (int64_t column = threadIdx.x * kVec; column < visible; column += kLongThreads * kVec)
        copy_async(reinterpret_cast<Packed<T, kVec>*>(stay + column), row + column);
      end_of_copies();
    }
  }
  __device__ __forceinline__ void wait() const {
    if constexpr (kStays) wait_for_copies<0>();
  }
  __device__ __forceinline__ void numbers(int64_t column, Compute<T> (&to)[kVec]) const {
    unpack(load<kVec>((kStays ? stay : row) + column), to);
  }
};

// fn(column): the vectors of this thread.
template <int kVec, class Fn>
__device__ __forceinline__ void for_each_long(int64_t width, const Fn& fn) {
#pragma unroll 2
  for (int64_t column = threadIdx.x * kVec; column < width; column += kLongThreads * kVec) fn(column);
}

// Bytes of a row, if blocks may have so many to themselves; else 0.
template <class T>
int bytes_that_stay(int64_t width) {
  constexpr int kReserved = 2048;  // of the runtime and of what kernels declare
  const int64_t bytes = width * static_cast<int64_t>(sizeof(T));
  return bytes <= current_device().smem_per_block - kReserved ? static_cast<int>(bytes) : 0;
}

// One of a direction's kernels: for rows that fit into registers, kItems accesses per thread; for rows that don't; and
// for those whose block can keep them in shared memory (16-byte accesses alone).
template <class T, int kVec, int kItems, class Args>
void launch_softmax(Args args, const Stream& where, void (*in_registers)(Args), void (*read_again)(Args),
                    void (*stays)(Args)) {
  const int64_t width = args.rows.width, count = args.rows.count;
  if (count * width == 0) return;
  args.plan = plan_rows((width + kVec - 1) / kVec, kItems, kThreads, kMaxThreads);
  if (args.plan.in_registers) return launch_rows(in_registers, args.plan, count, args, where);
  const int bytes = kVec > 1 ? bytes_that_stay<T>(width) : 0;
  launch_after(bytes ? stays : read_again, count, 1, kLongThreads, static_cast<cudaStream_t>(where.stream), args,
               bytes);
}

template <class T, int kVec, bool kStays>
__global__ void __launch_bounds__(kLongThreads, (kLongBlocks<T, kStays>))
    softmax_forward_long(const __grid_constant__ SoftmaxForwardArgs args) {
  using C = Compute<T>;
  using Merge = SoftmaxMerge<T>;
  __shared__ typename Merge::Shared shared;
  extern __shared__ __align__(16) char smem[];
  wait_for_kernel_before();
  const SoftmaxFwdParams& p = args.p;
  const int64_t row = blockIdx.x, width = args.rows.width, visible = args.rows.visible(row);
  const LongRow<T, kVec, kStays> x(static_cast<const T*>(p.x) + row * width, smem, visible);
  const T* const mask = p.mask.data ? static_cast<const T*>(p.mask.data) + args.rows.mask_offset(p.mask, row) : nullptr;
  const auto score = [&](int64_t column, C(&to)[kVec]) {
    if (column < visible) {
      x.numbers(column, to);
      if (mask) {
        C bias[kVec];
        unpack(load<kVec>(mask + column), bias);
#pragma unroll
        for (int i = 0; i < kVec; ++i) to[i] += bias[i];
      }
    }
    if (column + kVec <= visible) return;
#pragma unroll
    for (int i = 0; i < kVec; ++i) to[i] = column + i < visible ? to[i] : lowest<C>();
  };

  SoftmaxPart<T> part;  // the sum always relative to the maximum so far
  x.wait();
  for_each_long<kVec>(visible, [&](int64_t column) {
    C s[kVec];
    score(column, s);
    SoftmaxPart<T> longer = part;
#pragma unroll
    for (int i = 0; i < kVec; ++i) longer.top = max(longer.top, s[i]);
    const C base = longer.base();
    longer.sum *= part.relative_to(longer.top);
#pragma unroll
    for (int i = 0; i < kVec; ++i) longer.sum += exp_as<T>(s[i] - base);
    part = longer;
  });
  const SoftmaxPart<T> all = Merge(shared, ThreadGroup(args.plan))(part);

  T* const out = static_cast<T*>(p.out) + row * width;
  const bool is_log = args.rows.log;
  const C factor = C{1} / all.sum, shift = is_log ? log(all.sum) : C{0};
  for_each_long<kVec>(width, [&](int64_t column) {
    C y[kVec];
    score(column, y);
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
      y[i] -= all.top;
      y[i] = is_log ? y[i] - shift : exp_as<T>(y[i]) * factor;
    }
    store(out + column, pack<T>(y));
  });
}

template <class T, int kVec, bool kStays>
__global__ void __launch_bounds__(kLongThreads, (kLongBlocks<T, kStays>))
    softmax_backward_long(const __grid_constant__ SoftmaxBackwardArgs args) {
  using C = Compute<T>;
  using Reduce = GroupReduce<C, 1>;
  __shared__ typename Reduce::Shared shared;
  extern __shared__ __align__(16) char smem[];
  wait_for_kernel_before();
  const int64_t row = blockIdx.x, width = args.rows.width, visible = args.rows.visible(row);
  const LongRow<T, kVec, kStays> dout(static_cast<const T*>(args.p.dout) + row * width, smem, visible);
  const T* const out = static_cast<const T*>(args.p.out) + row * width;
  const bool is_log = args.rows.log;

  C sum[1] = {0};
  dout.wait();
  for_each_long<kVec>(visible, [&](int64_t column) {
    C y[kVec], dy[kVec];
    if (!is_log) unpack(load<kVec>(out + column), y);
    dout.numbers(column, dy);
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
      const C term = is_log ? dy[i] : dy[i] * y[i];
      sum[0] += column + i < visible ? term : C{0};
    }
  });
  Reduce(shared, ThreadGroup(args.plan))(sum, Sum());

  T* const dx_row = static_cast<T*>(args.p.dx) + row * width;
  for_each_long<kVec>(width, [&](int64_t column) {
    C dx[kVec] = {};
    if (column < visible) {
      C y[kVec], dy[kVec];
      unpack(load<kVec>(out + column), y);
      dout.numbers(column, dy);
#pragma unroll
      for (int i = 0; i < kVec; ++i) {
        const C x = is_log ? dy[i] - exp_as<T>(y[i]) * sum[0] : y[i] * (dy[i] - sum[0]);
        dx[i] = column + i < visible ? x : C{0};
      }
    }
    store(dx_row + column, pack<T>(dx));
  });
}

}  // namespace xformers::cuda
