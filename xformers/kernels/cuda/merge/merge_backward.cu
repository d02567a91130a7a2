// Two passes over the parts of a row: dout_i, the inner products <out_i, dout> and their mean; then dlse_i. Of more
// parts than are read at once, the products wait in the places of dlse_i.
#include "xformers/kernels/cuda/base/reduce.cuh"
#include "xformers/kernels/cuda/merge/merge_rows.cuh"

namespace xformers::cuda {
namespace {

template <class T, class C, bool kAligned, int kBatch>
__global__ void __launch_bounds__(kMergeThreads, 2) merge_backward_rows(const __grid_constant__ MergeArgs args) {
  constexpr int kVector = kVectorOf<T>;
  const MergeShape& shape = args.shape;
  const DType lse_dtype = shape.lse_dtype;
  const auto [index, lanes, dim, step, mine, num_parts] = RowLane::of<T>(args);
  const auto rows = static_cast<uint32_t>(shape.num_rows());
  const bool inside = index < rows;  // the others only take part in the sums of their warp
  const MergeRow row(args.by, inside ? index : rows - 1);
  const PartRows<const T> parts(args.parts, args.few_parts, row);
  const PartRows<T> grads(args.grads, args.few_grads, row);
  const Shares<C> shares(parts, num_parts, lse_dtype);
  C weight[kBatch], dots[kBatch], mean = 0;  // mean: sum_i W_i <out_i, dout>
  for (int begin = 0; begin < num_parts; begin += kBatch) {
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      weight[i] = begin + i < num_parts ? shares.weight(parts.template lse<C>(begin + i, lse_dtype)) : C(0);
      dots[i] = 0;
    }
    for (int first = mine; first < dim; first += step) {
      C dout[kVector];
      load_any<kAligned>(dout, shape.out_dtype, row, args.out, first, dim);
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (begin + i >= num_parts) continue;
        C gradient[kVector] = {};
        if (weight[i] != 0) {  // else its elements may be anything
          C x[kVector];
          unpack(load_row<kAligned, kVector>(parts.out(begin + i), first, dim), x);
#pragma unroll
          for (int d = 0; d < kVector; ++d) {
            gradient[d] = weight[i] * dout[d];
            dots[i] += x[d] * dout[d];
          }
        }
        if (inside) store_row<kAligned>(pack<T>(gradient), grads.out(begin + i), first, dim);
      }
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (begin + i >= num_parts) continue;
      dots[i] = warp_reduce(dots[i], Sum{}, lanes);
      mean += weight[i] * dots[i];
      if (num_parts > kBatch && mine == 0 && inside) grads.set_lse(begin + i, lse_dtype, dots[i]);
    }
  }
  if (mine > 0 || !inside) return;
  const C dlse = args.lse.data ? load_lse<C>(lse_dtype, args.lse.data, row.in(args.lse)) : C(0);
  const auto write = [&](int part, C share, C dot) {
    grads.set_lse(part, lse_dtype, share == 0 ? C(0) : share * (dlse + dot - mean));
  };
  if (num_parts <= kBatch) {
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (i < num_parts) write(i, weight[i], dots[i]);
    }
  } else {
    for (int i = 0; i < num_parts; ++i) {
      write(i, shares.weight(parts.template lse<C>(i, lse_dtype)), grads.template lse<C>(i, lse_dtype));
    }
  }
}

template <class T, class C, bool kAligned, int kBatch>
struct BackwardKernel {
  static auto get() { return merge_backward_rows<T, C, kAligned, kBatch>; }
};

}  // namespace

void launch_merge_backward(const MergeArgs& args, cudaStream_t stream) { launch_merge<BackwardKernel>(args, stream); }

}  // namespace xformers::cuda
