// Normalisation: a group of threads per row, from one lane to 1024 threads. The row is read once and stays in registers
// (wider rows are read again through the L2 cache). Weights are on their way before the row is reduced.
#include "xformers/kernels/cuda/base/row_plan.h"
#include "xformers/kernels/cuda/base/row_share.cuh"
#include "xformers/kernels/cuda/norm/norm_cuda.h"
#include "xformers/kernels/cuda/norm/statistics.cuh"
#include "xformers/kernels/params/checks.h"

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
__global__ void __maxnreg__((kRegisters<kVec, kWork>)) norm_forward_rows(const __grid_constant__ ForwardArgs args) {
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

  C mean = 0, scale;
  bool again;  // the squares did not fit, or the guess was far
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
    const Moments<C> moments(sums[0], sums[1], count, reciprocal, eps);
    mean = guess + moments.mean_deviation;
    scale = inverse_root(moments.variance + eps);
    again = group.any(!moments.exact);
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
    scale = inverse_root(sum[0] * reciprocal + eps);
    again = reduce.any_part(sum[0], [&](C squares) { return !Squares<C>::fit(squares, reciprocal, eps); });
  }
  if (again) {
    const RowStatistics<C> exact = exact_statistics < kWork == Work::kLayer, kVec,
                           C > (p.shape, reduce, for_each,
                                [&](int item, auto column, C(&to)[kVec]) { numbers_of(x, item, column, to); });
    mean = exact.mean;
    scale = exact.scale;
    x.keep_packed();
  }

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
void run(const NormFwdParams& p, const Stream& where) {
  constexpr int kItems = kItemsOf<T, kVec, kWork>;
  const RowPlan plan = plan_rows((p.shape.width + kVec - 1) / kVec, kItems, kThreads, kMaxThreads);
  const auto kernel =
      plan.in_registers ? norm_forward_rows<T, W, kVec, kItems, kWork> : norm_forward_rows<T, W, kVec, 0, kWork>;
  launch_rows(kernel, plan, p.shape.rows, ForwardArgs{p, plan}, where);
}

template <class T, class W, int kVec>
void run(const NormFwdParams& p, const Stream& where) {
  if (p.shape.kind == NormKind::kLayer) return run<T, W, kVec, Work::kLayer>(p, where);
  p.increment.data ? run<T, W, kVec, Work::kRmsAdd>(p, where) : run<T, W, kVec, Work::kRms>(p, where);
}

}  // namespace

void norm_forward(const NormFwdParams& p, const Stream& where) {
  check(p, WeightTypes::kAlsoOfRows);
  if (p.shape.rows == 0 || p.shape.width == 0) return;
  const DType dtype = p.shape.dtype;
  const bool vectors =
      rows_fit({&p.x, &p.increment, &p.out}, p.shape.width, dtype) && is_aligned(p.weight) && is_aligned(p.bias);
  with_vectors<false>(dtype, vectors, [&]<class T, int kVec>() {
    if constexpr (sizeof(T) == 2) {
      if (p.weight_dtype == dtype) return run<T, T, kVec>(p, where);
    }
    run<T, Compute<T>, kVec>(p, where);
  });
}

}  // namespace xformers::cuda
