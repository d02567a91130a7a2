// Normalisation: a group of threads per row, from one lane to 1024 threads. The row is read once and stays in registers
// (wider rows are read again through the L2 cache). Weights are on their way before the row is reduced.
#include <algorithm>

#include "xformers/kernels/cuda/base/launch.h"
#include "xformers/kernels/cuda/base/row_plan.h"
#include "xformers/kernels/cuda/base/row_share.cuh"
#include "xformers/kernels/cuda/norm/norm_cuda.h"
#include "xformers/kernels/cuda/norm/statistics.cuh"

namespace xformers::cuda {
namespace {

enum class Work { kRms, kRmsAdd, kLayer };

struct ForwardArgs {
  NormFwdParams p;
  RowPlan plan;
};

template <class T>
constexpr DType kDTypeOf = std::is_same_v<T, double>          ? DType::kFloat64
                           : std::is_same_v<T, __nv_bfloat16> ? DType::kBFloat16
                           : std::is_same_v<T, __half>        ? DType::kFloat16
                                                              : DType::kFloat32;

// Accesses of a row per thread, threads of a block. Registers are few, so that enough threads have their loads on the
// way: 64 KiB and more per multiprocessor.
template <class T, int kVec, Work kWork>
constexpr int kItemsOf = kVec == 1 && sizeof(T) < 8 && kWork != Work::kRmsAdd ? 8 : 4;
constexpr int kThreads = 256, kMaxThreads = 1024;
template <int kVec, Work kWork>
constexpr int kRegisters = kVec == 1 || kWork != Work::kRms ? 64 : 56;

// Weights of a thread's columns in type W, which are C or T. Wanted early, and of no more bytes than the row, they are
// fetched into registers before the row is reduced.
template <class T, class W, int kVec, int kItems, bool kEarlyWanted>
struct Factors {
  using C = Compute<T>;
  static constexpr bool kEarly = kEarlyWanted && kItems > 0 && sizeof(W) * kVec <= 16;
  RowShare<W, kVec, kEarly ? kItems : 0> share;
  const W* data = nullptr;
  W fill;

  // nullptr: all are `otherwise`.
  __device__ __forceinline__ Factors(const void* from, float otherwise)
      : data(static_cast<const W*>(from)), fill(to_element<W>(otherwise)) {}
  __device__ __forceinline__ void fetch(const ThreadGroup& group, int64_t width) {
    if constexpr (kEarly) share.fetch_or(data, group, data ? static_cast<int>(width) : 0, fill);
  }
  __device__ __forceinline__ void numbers(int item, int64_t column, C (&to)[kVec]) const {
    if constexpr (kEarly) {
      unpack(share.items[item], to);
    } else if (data) {
      load_as(data, kDTypeOf<W>, column, to);
    } else {
#pragma unroll
      for (int i = 0; i < kVec; ++i) to[i] = to_compute(fill);
    }
  }
};

// Of a row's first elements: mostly near its mean.
template <int kVec, class T>
__device__ __forceinline__ Compute<T> first_mean(const T* row) {
  Compute<T> x[kVec], sum = 0;
  unpack(load<kVec>(row), x);
#pragma unroll
  for (int i = 0; i < kVec; ++i) sum += x[i];
  return sum / kVec;
}

template <class T, class W, int kVec, int kItems, Work kWork>
__global__ void __maxnreg__((kRegisters<kVec, kWork>)) forward_rows(const __grid_constant__ ForwardArgs args) {
  using C = Compute<T>;
  using Reduce = GroupReduce<C, 2>;
  __shared__ typename Reduce::Shared shared;
  wait_for_kernel_before();
  const NormFwdParams& p = args.p;
  const ThreadGroup group(args.plan);
  Reduce reduce(shared, group);
  const int64_t row = int64_t{blockIdx.x} * args.plan.rows_per_block + group.index;
  const bool valid = row < p.shape.rows;
  const std::conditional_t<(kItems > 0), int, int64_t> width = valid ? p.shape.width : 0;
  const C count = static_cast<C>(p.shape.width), reciprocal = C{1} / count, eps = static_cast<C>(p.shape.eps);
  const auto for_each = [&](const auto& fn) { for_each_vector<kVec, kItems>(group, width, true, fn); };
  T* const x_row = static_cast<T*>(p.x.data) + row * p.x.stride;
  RowShare<T, kVec, kItems> x, increment;
  x.fetch(x_row, group, width, true);
  if constexpr (kWork == Work::kRmsAdd) {
    increment.fetch(static_cast<const T*>(p.increment.data) + row * p.increment.stride, group, width, true);
  }
  Factors<T, W, kVec, kItems, kWork != Work::kRmsAdd || sizeof(T) == 2> weight(p.weight, 1);
  if constexpr (kWork != Work::kRmsAdd) weight.fetch(group, width);
  Factors<T, W, kVec, kItems, std::is_same_v<T, __nv_bfloat16>> bias(p.bias, 0);
  if constexpr (kWork == Work::kLayer) bias.fetch(group, width);
  const C guess = kWork == Work::kLayer && valid ? first_mean<kVec>(x_row) : C{0};

  C mean = 0, mean_square;
  if constexpr (kWork == Work::kLayer) {
    C sums[2] = {0, 0};  // of x - guess and its square
    for_each([&](int item, auto column) {
      C a[kVec];
      numbers_of(x, item, column, a);
#pragma unroll
      for (int i = 0; i < kVec; ++i) {
        const C deviation = a[i] - guess;
        sums[0] += deviation;
        sums[1] += deviation * deviation;
      }
    });
    reduce(sums, Sum());
    x.keep_packed();
    const Moments<C> moments(sums[0], sums[1], count, reciprocal);
    mean = guess + moments.mean_deviation;
    mean_square = moments.variance;
    if (group.any(!moments.exact)) {
      C sum[1] = {0}, square[1] = {0};
      for_each([&](int item, auto column) {
        C a[kVec];
        numbers_of(x, item, column, a);
#pragma unroll
        for (int i = 0; i < kVec; ++i) sum[0] += a[i];
      });
      reduce(sum, Sum());
      mean = mean_of(sum[0], count, reciprocal);
      for_each([&](int item, auto column) {
        C a[kVec];
        numbers_of(x, item, column, a);
#pragma unroll
        for (int i = 0; i < kVec; ++i) square[0] += (a[i] - mean) * (a[i] - mean);
      });
      reduce(square, Sum());
      mean_square = square[0] * reciprocal;
      x.keep_packed();
    }
  } else {
    C sum[1] = {0};
    for_each([&](int item, auto column) {
      C a[kVec];
      numbers_of(x, item, column, a);
      if constexpr (kWork == Work::kRmsAdd) {
        C b[kVec];
        numbers_of(increment, item, column, b);
#pragma unroll
        for (int i = 0; i < kVec; ++i) a[i] += b[i];
        x.items[item] = pack<T>(a);
        store(x_row + column, x.items[item]);
      }
#pragma unroll
      for (int i = 0; i < kVec; ++i) sum[0] += a[i] * a[i];
    });
    if constexpr (kWork == Work::kRmsAdd) weight.fetch(group, width);  // in the registers of the increment
    reduce(sum, Sum());
    x.keep_packed();
    mean_square = sum[0] * reciprocal;
  }
  const C scale = inverse_root(mean_square + eps);

  T* const out_row = static_cast<T*>(p.out.data) + row * p.out.stride;
  for_each([&](int item, auto column) {
    C a[kVec], factor[kVec];
    numbers_of(x, item, column, a);
    weight.numbers(item, column, factor);
#pragma unroll
    for (int i = 0; i < kVec; ++i) a[i] = (kWork == Work::kLayer ? (a[i] - mean) * scale : a[i] * scale) * factor[i];
    if constexpr (kWork == Work::kLayer) {
      bias.numbers(item, column, factor);
#pragma unroll
      for (int i = 0; i < kVec; ++i) a[i] += factor[i];
    }
    store(out_row + column, pack<T>(a));
  });
}

template <class T, class W, int kVec, Work kWork>
void run(const NormFwdParams& p, cudaStream_t stream) {
  constexpr int kItems = kItemsOf<T, kVec, kWork>;
  const RowPlan plan = plan_rows((p.shape.width + kVec - 1) / kVec, kItems, kThreads, kMaxThreads);
  launch_after(plan.in_registers ? forward_rows<T, W, kVec, kItems, kWork> : forward_rows<T, W, kVec, 0, kWork>,
               plan.blocks(p.shape.rows), 1, plan.threads, stream, ForwardArgs{p, plan});
}

template <class T, class W, int kVec>
void run(const NormFwdParams& p, cudaStream_t stream) {
  if (p.shape.kind == NormKind::kLayer) {
    run<T, W, kVec, Work::kLayer>(p, stream);
  } else if (p.increment.data) {
    run<T, W, kVec, Work::kRmsAdd>(p, stream);
  } else {
    run<T, W, kVec, Work::kRms>(p, stream);
  }
}

template <class T, class W>
void run(const NormFwdParams& p, bool vectors, cudaStream_t stream) {
  if constexpr (sizeof(T) == 8) {
    run<T, W, 1>(p, stream);
  } else {
    vectors ? run<T, W, kVectorOf<T>>(p, stream) : run<T, W, 1>(p, stream);
  }
}

bool rows_fit(const Rows& rows, DType dtype) { return !rows.data || rows_are_aligned(rows.data, rows.stride, dtype); }

}  // namespace

void norm_forward(const NormFwdParams& p, const Stream& where) {
  if (p.shape.rows == 0 || p.shape.width == 0) return;
  const auto stream = static_cast<cudaStream_t>(where.stream);
  const DType dtype = p.shape.dtype;
  const bool vectors = p.shape.width % (16 / static_cast<int64_t>(size_of(dtype))) == 0 && rows_fit(p.x, dtype) &&
                       rows_fit(p.increment, dtype) && rows_fit(p.out, dtype) && is_aligned(p.weight) &&
                       is_aligned(p.bias);
  with_element(dtype, [&](auto element) {
    using T = decltype(element);
    if (p.weight_dtype == dtype) {
      run<T, T>(p, vectors, stream);
    } else if constexpr (sizeof(T) == 2) {
      run<T, float>(p, vectors, stream);
    }
  });
}

}  // namespace xformers::cuda
