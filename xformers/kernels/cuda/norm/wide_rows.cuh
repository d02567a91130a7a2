// Gradients of rows that do not fit into registers: each is read twice, the second time through the L2 cache; the sums
// of columns take a pass of their own.
#pragma once

#include "xformers/kernels/cuda/norm/gradient.cuh"

namespace xformers::cuda {

inline constexpr int kWideThreads = 512, kColumnThreads = 256;

// dx alone, and the statistics where column sums are wanted too.
template <class T, int kVec, bool kLayer>
__global__ void __launch_bounds__(kWideThreads, 1)
    norm_backward_wide_rows(const __grid_constant__ NormBackwardArgs args) {
  using C = Compute<T>;
  using Reduce = GroupReduce<C, kLayer ? 4 : 2>;
  __shared__ typename Reduce::Shared shared;
  const NormBwdParams& p = args.p;
  const ThreadGroup group(args.plan);
  Reduce reduce(shared, group);
  for (int64_t row = blockIdx.x; row < p.shape.rows; row += gridDim.x) {
    const T* const x = row_at<const T>(p.x, row);
    const T* const dout = row_at<const T>(p.dout, row);
    const auto for_each = [&](const auto& fn) { for_each_vector<kVec, 0>(group, p.shape.width, true, fn); };
    const auto weigh = [&](int, int64_t column, C(&g)[kVec]) { times_weight(p, column, g); };
    const RowSums<C> sums = reduce_row<kVec, kLayer, C>(
        p, group, reduce, to_compute(x[0]), for_each,
        [&](int, int64_t column, C(&to)[kVec]) { unpack(load<kVec>(x + column), to); },
        [&](int, int64_t column, C(&to)[kVec]) { unpack(load<kVec>(dout + column), to); }, weigh);
    if (args.statistics && threadIdx.x == 0) {
      static_cast<C*>(args.statistics)[2 * row] = sums.mean;
      static_cast<C*>(args.statistics)[2 * row + 1] = sums.scale;
    }
    if (!p.dx.data) continue;
    for_each([&](int, int64_t column) {
      C z[kVec], dx[kVec];
      unpack(load<kVec>(x + column), z);
      unpack(load<kVec>(dout + column), dx);
      weigh(0, column, dx);
      gradient_of(sums, z, dx);
      store(row_at<T>(p.dx, row) + column, pack<T>(dx));
    });
  }
}

// Blocks of one vector of columns per thread; blockIdx.y is the block's share of the rows.
template <class T, int kVec, bool kLayer>
__global__ void __launch_bounds__(kColumnThreads)
    norm_backward_wide_columns(const __grid_constant__ NormBackwardArgs args) {
  using C = Compute<T>;
  constexpr int kSums = kLayer ? 2 : 1;
  const NormBwdParams& p = args.p;
  const int64_t column = (blockIdx.x * int64_t{kColumnThreads} + threadIdx.x) * kVec;
  if (column >= p.shape.width) return;
  C sums[kSums][kVec] = {};
#pragma unroll 2
  for (int64_t row = blockIdx.y; row < p.shape.rows; row += gridDim.y) {
    const C mean = static_cast<const C*>(args.statistics)[2 * row];
    const C scale = static_cast<const C*>(args.statistics)[2 * row + 1];
    C x[kVec], dout[kVec];
    unpack(load<kVec>(row_at<const T>(p.x, row) + column), x);
    unpack(load<kVec>(row_at<const T>(p.dout, row) + column), dout);
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
      sums[0][i] += dout[i] * ((x[i] - mean) * scale);
      if constexpr (kLayer) sums[1][i] += dout[i];
    }
  }
#pragma unroll
  for (int s = 0; s < kSums; ++s) {
    store(static_cast<C*>(args.partials) + (blockIdx.y * int64_t{kSums} + s) * p.shape.width + column,
          pack<C>(sums[s]));
  }
}

}  // namespace xformers::cuda
