// out = sum_i W_i out_i in one pass over the parts: sums are kept relative to the largest lse so far, and rescaled when
// it grows.
#include "xformers/kernels/cuda/merge/merge_rows.cuh"

namespace xformers::cuda {
namespace {

template <class T, class C, PartAccess kAccess, int kBatch>
__global__ void __launch_bounds__(kMergeThreads, kMergeBlocks<MergePass::kForward, C, kAccess, kBatch>)
    merge_forward_rows(const __grid_constant__ MergeArgs args) {
  using Parts = PartRows<const T, kAccess>;
  constexpr int kVector = kVectorOf<T>;
  constexpr bool kAligned = Parts::kAligned;
  constexpr C kNothing = -static_cast<C>(INFINITY);
  const MergeShape& shape = args.shape;
  const uint32_t index = blockIdx.x * (kMergeThreads >> args.log_lanes) + (threadIdx.x >> args.log_lanes);
  if (index >= shape.num_rows()) return;
  const MergeRow row(args, index);
  const Parts parts(args.parts, args.few_parts, row);
  const int lanes = 1 << args.log_lanes, dim = static_cast<int>(shape.head_dim), step = lanes * kVector,
            mine = (static_cast<int>(threadIdx.x) & (lanes - 1)) * kVector,
            num_parts = static_cast<int>(shape.num_parts);
  for (int first = mine; first < dim; first += kOwnVectors * step) {
    C sum[kOwnVectors][kVector] = {}, highest = kNothing, total = 0;
    for (int begin = 0; begin < num_parts; begin += kBatch) {
      Elements<T, kVector> x[kBatch][kOwnVectors];
      C lse[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        lse[i] = kNothing;
        if (begin + i >= num_parts) continue;
        lse[i] = parts.template lse<C>(begin + i, shape.lse_dtype);
        const T* const from = parts.out(begin + i);
#pragma unroll
        for (int j = 0; j < kOwnVectors; ++j) {
          if (first + j * step < dim)
            x[i][j] = Elements<T, kVector>::template load<kAligned>(from, first + j * step, dim);
        }
      }
      C now = highest;
#pragma unroll
      for (int i = 0; i < kBatch; ++i) now = max(now, lse[i]);
      const C kept = share(highest, now);
      highest = now;
      total *= kept;
#pragma unroll
      for (int j = 0; j < kOwnVectors; ++j)
#pragma unroll
        for (int d = 0; d < kVector; ++d) sum[j][d] *= kept;
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const C weight = share(lse[i], highest);
        if (weight == 0) continue;  // its elements may be anything
        total += weight;
#pragma unroll
        for (int j = 0; j < kOwnVectors; ++j)
#pragma unroll
          for (int d = 0; d < kVector; ++d) sum[j][d] += weight * x[i][j].template get<C>(d);
      }
    }
    const C inverse = total == 0 ? C(0) : 1 / total;
#pragma unroll
    for (int j = 0; j < kOwnVectors; ++j) {
#pragma unroll
      for (int d = 0; d < kVector; ++d) sum[j][d] *= inverse;
      if (first + j * step < dim) store_any<kAligned>(sum[j], shape.out_dtype, row, args.out, first + j * step, dim);
    }
    if (first == 0 && args.lse.data) {
      store_lse(total == 0 ? kNothing : highest + log(total), shape.lse_dtype, args.lse.data, row.offset(args.lse));
    }
  }
}

template <class T, class C, PartAccess kAccess, int kBatch>
struct ForwardKernel {
  static auto get() { return merge_forward_rows<T, C, kAccess, kBatch>; }
};

}  // namespace

void launch_merge_forward(const MergeArgs& args, cudaStream_t stream) { launch_merge<ForwardKernel>(args, stream); }

}  // namespace xformers::cuda
