// Two passes over the parts of a row: the inner products <out_i, dout> and the weights' sums, then the gradients. Of
// more parts than are read at once, the products wait in the places of dlse_i.
#include "xformers/kernels/cuda/base/reduce.cuh"
#include "xformers/kernels/cuda/merge/merge_rows.cuh"

namespace xformers::cuda {
namespace {

template <class T, class C, PartAccess kAccess, int kBatch>
__global__ void __launch_bounds__(kMergeThreads, kMergeBlocks<MergePass::kBackward, C, kAccess, kBatch>)
    merge_backward_rows(const __grid_constant__ MergeArgs args) {
  constexpr int kVector = kVectorOf<T>;
  constexpr bool kAligned = kAccess != PartAccess::kAny;
  constexpr C kNothing = -static_cast<C>(INFINITY);
  const MergeShape& shape = args.shape;
  const DType lse_dtype = shape.lse_dtype;
  const uint32_t index = blockIdx.x * (kMergeThreads >> args.log_lanes) + (threadIdx.x >> args.log_lanes);
  const auto rows = static_cast<uint32_t>(shape.num_rows());
  const bool inside = index < rows;  // the others only take part in the sums of their warp
  const MergeRow row(args, inside ? index : rows - 1);
  const PartRows<const T, kAccess> parts(args.parts, args.few_parts, row);
  const PartRows<T, kAccess> grads(args.grads, args.few_grads, row);
  const int lanes = 1 << args.log_lanes, dim = static_cast<int>(shape.head_dim), step = lanes * kVector,
            mine = (static_cast<int>(threadIdx.x) & (lanes - 1)) * kVector,
            num_parts = static_cast<int>(shape.num_parts);
  const bool one_step = dim <= kOwnVectors * step, writes_lse = mine == 0 && inside;
  C dout[kOwnVectors][kVector] = {};
  const auto load_dout = [&](int first) {
#pragma unroll
    for (int j = 0; j < kOwnVectors; ++j) {
      if (first + j * step < dim) load_any<kAligned>(dout[j], shape.out_dtype, row, args.out, first + j * step, dim);
    }
  };
  if (one_step) load_dout(mine);

  C lse[kBatch], dots[kBatch];
  C highest = kNothing, total = 0, mean = 0;  // mean: sum_i share_i <out_i, dout>
  for (int begin = 0; begin < num_parts; begin += kBatch) {
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      lse[i] = begin + i < num_parts ? parts.template lse<C>(begin + i, lse_dtype) : kNothing;
      dots[i] = 0;
    }
    for (int first = mine; first < dim; first += kOwnVectors * step) {
      Elements<T, kVector> x[kBatch][kOwnVectors];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (begin + i >= num_parts) continue;
        const T* const from = parts.out(begin + i);
#pragma unroll
        for (int j = 0; j < kOwnVectors; ++j) {
          if (first + j * step < dim)
            x[i][j] = Elements<T, kVector>::template load<kAligned>(from, first + j * step, dim);
        }
      }
      if (!one_step) load_dout(first);
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (lse[i] == kNothing) continue;  // its elements may be anything
#pragma unroll
        for (int j = 0; j < kOwnVectors; ++j) {
          if (first + j * step >= dim) continue;
#pragma unroll
          for (int d = 0; d < kVector; ++d) dots[i] += x[i][j].template get<C>(d) * dout[j][d];
        }
      }
    }
    C now = highest;
#pragma unroll
    for (int i = 0; i < kBatch; ++i) now = max(now, lse[i]);
    const C kept = share(highest, now);
    highest = now;
    total *= kept, mean *= kept;
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (begin + i >= num_parts) continue;
      dots[i] = warp_reduce(dots[i], Sum{}, lanes);
      const C weight = share(lse[i], highest);
      total += weight, mean += weight * dots[i];
      if (writes_lse && num_parts > kBatch) grads.set_lse(begin + i, lse_dtype, dots[i]);
    }
  }
  if (!inside) return;

  const C inverse = total == 0 ? C(0) : 1 / total;
  mean *= inverse;
  const C dlse = args.lse.data ? load_lse<C>(lse_dtype, args.lse.data, row.offset(args.lse)) : C(0);
  const auto write = [&](int part, C part_lse, C dot) {
    const C weight = share(part_lse, highest) * inverse;
    if (writes_lse) grads.set_lse(part, lse_dtype, weight == 0 ? C(0) : weight * (dlse + dot - mean));
    T* const to = grads.out(part);
    for (int first = mine; first < dim; first += kOwnVectors * step) {
      if (!one_step) load_dout(first);
#pragma unroll
      for (int j = 0; j < kOwnVectors; ++j) {
        if (first + j * step >= dim) continue;
        C gradient[kVector];
#pragma unroll
        for (int d = 0; d < kVector; ++d) gradient[d] = weight == 0 ? C(0) : weight * dout[j][d];
        Elements<T, kVector> x;
        x.set(gradient);
        x.template store<kAligned>(to, first + j * step, dim);
      }
    }
  };
  if (num_parts <= kBatch) {
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (i < num_parts) write(i, lse[i], dots[i]);
    }
  } else {
    for (int i = 0; i < num_parts; ++i) {
      write(i, parts.template lse<C>(i, lse_dtype), writes_lse ? grads.template lse<C>(i, lse_dtype) : C(0));
    }
  }
}

template <class T, class C, PartAccess kAccess, int kBatch>
struct BackwardKernel {
  static auto get() { return merge_backward_rows<T, C, kAccess, kBatch>; }
};

}  // namespace

void launch_merge_backward(const MergeArgs& args, cudaStream_t stream) { launch_merge<BackwardKernel>(args, stream); }

}  // namespace xformers::cuda
