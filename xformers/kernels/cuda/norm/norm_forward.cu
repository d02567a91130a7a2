// Normalisation: a group of threads per row, from one lane to 1024 threads. The row is read once and stays in registers
// (rows beyond 1024 threads x kItems vectors are read again through the L2 cache).
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

constexpr int kThreads = 256;
template <Work kWork>
constexpr int kMaxThreads = kWork == Work::kRmsAdd ? 512 : 1024;  // with two rows in registers

template <class T, int kVec, int kItems, Work kWork>
__global__ void __launch_bounds__(kMaxThreads<kWork>, 1) forward_rows(const __grid_constant__ ForwardArgs args) {
  using C = Compute<T>;
  using Reduce = GroupReduce<C, 2>;
  __shared__ typename Reduce::Shared shared;
  const NormFwdParams& p = args.p;
  const ThreadGroup group(args.plan.group);
  Reduce reduce(shared, group);
  const int64_t width = p.shape.width, rows_per_block = args.plan.rows_per_block();
  const C count = static_cast<C>(width), reciprocal = C{1} / count, eps = static_cast<C>(p.shape.eps);

  for (int64_t first = blockIdx.x * rows_per_block; first < p.shape.rows; first += gridDim.x * rows_per_block) {
    const int64_t row = first + group.index;
    const bool valid = row < p.shape.rows;
    const auto for_each = [&](const auto& fn) { for_each_vector<kVec, kItems>(group, width, valid, fn); };
    T* const x_row = static_cast<T*>(p.x.data) + row * p.x.stride;
    RowShare<T, kVec, kItems> x;
    x.fetch(x_row, group, width, valid);

    C mean = 0, mean_square;
    if constexpr (kWork == Work::kLayer) {
      const C guess = valid ? to_compute(x_row[0]) : C{0};
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
      RowShare<T, kVec, kItems> increment;
      if constexpr (kWork == Work::kRmsAdd) {
        increment.fetch(static_cast<const T*>(p.increment.data) + row * p.increment.stride, group, width, valid);
      }
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
      reduce(sum, Sum());
      x.keep_packed();
      mean_square = sum[0] * reciprocal;
    }
    const C scale = inverse_root(mean_square + eps);

    T* const out_row = static_cast<T*>(p.out.data) + row * p.out.stride;
    const auto finish = [&]<DType kWeight>() {  // known at compile time, so that loads need no branches
      for_each([&](int item, auto column) {
        C a[kVec], factor[kVec];
        numbers_of(x, item, column, a);
#pragma unroll
        for (int i = 0; i < kVec; ++i) a[i] = kWork == Work::kLayer ? (a[i] - mean) * scale : a[i] * scale;
        if (p.weight) {
          load_as(p.weight, kWeight, column, factor);
#pragma unroll
          for (int i = 0; i < kVec; ++i) a[i] *= factor[i];
        }
        if (kWork == Work::kLayer && p.bias) {
          load_as(p.bias, kWeight, column, factor);
#pragma unroll
          for (int i = 0; i < kVec; ++i) a[i] += factor[i];
        }
        store(out_row + column, pack<T>(a));
      });
    };
    if (p.weight_dtype == kDTypeOf<T>) {
      finish.template operator()<kDTypeOf<T>>();
    } else {
      finish.template operator()<kDTypeOf<C>>();
    }
  }
}

template <class T, int kVec, int kItems, Work kWork>
void run(const NormFwdParams& p, cudaStream_t stream) {
  const RowPlan plan = plan_rows((p.shape.width + kVec - 1) / kVec, kItems, kThreads, kMaxThreads<kWork>);
  launch<0>(plan.in_registers ? forward_rows<T, kVec, kItems, kWork> : forward_rows<T, kVec, 0, kWork>,
            std::min<int64_t>(plan.blocks(p.shape.rows), 1 << 30), 1, plan.threads, stream, ForwardArgs{p, plan});
}

template <class T, int kVec, int kItems>
void run(const NormFwdParams& p, cudaStream_t stream) {
  if (p.shape.kind == NormKind::kLayer) {
    run<T, kVec, kItems, Work::kLayer>(p, stream);
  } else if (p.increment.data) {
    run<T, kVec, kItems, Work::kRmsAdd>(p, stream);
  } else {
    run<T, kVec, kItems, Work::kRms>(p, stream);
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
    if constexpr (sizeof(T) == 8) {
      run<T, 1, 4>(p, stream);
    } else if (vectors) {
      run<T, kVectorOf<T>, 4>(p, stream);
    } else {
      run<T, 1, 8>(p, stream);
    }
  });
}

}  // namespace xformers::cuda
