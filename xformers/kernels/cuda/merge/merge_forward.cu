// out = sum_i W_i out_i: the weights' sum first, then the parts.
#include "xformers/kernels/cuda/merge/merge_rows.cuh"

namespace xformers::cuda {
namespace {

template <class T, class C, bool kAligned, int kBatch>
__global__ void __launch_bounds__(kMergeThreads, 2) merge_forward_rows(const __grid_constant__ MergeArgs args) {
  constexpr int kVector = kVectorOf<T>;
  const MergeShape& shape = args.shape;
  const auto [index, lanes, dim, step, mine, num_parts] = RowLane::of<T>(args);
  if (index >= shape.num_rows()) return;
  const MergeRow row(args.by, index);
  const PartRows<const T> parts(args.parts, args.few_parts, row);
  const Shares<C> shares(parts, num_parts, shape.lse_dtype);
  for (int first = mine; first < dim; first += step) {
    C sum[kVector] = {};
    for (int begin = 0; begin < num_parts; begin += kBatch) {
      Packed<T, kVector> x[kBatch];
      C weight[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        weight[i] = 0;
        if (begin + i >= num_parts) continue;
        weight[i] = shares.weight(parts.template lse<C>(begin + i, shape.lse_dtype));
        x[i] = load_row<kAligned, kVector>(parts.out(begin + i), first, dim);
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (weight[i] == 0) continue;  // its elements may be anything
        C numbers[kVector];
        unpack(x[i], numbers);
#pragma unroll
        for (int d = 0; d < kVector; ++d) sum[d] += weight[i] * numbers[d];
      }
    }
    store_any<kAligned>(sum, shape.out_dtype, row, args.out, first, dim);
  }
  if (mine == 0 && args.lse.data) store_lse(shares.lse(), shape.lse_dtype, args.lse.data, row.in(args.lse));
}

template <class T, class C, bool kAligned, int kBatch>
struct ForwardKernel {
  static auto get() { return merge_forward_rows<T, C, kAligned, kBatch>; }
};

}  // namespace

void launch_merge_forward(const MergeArgs& args, cudaStream_t stream) { launch_merge<ForwardKernel>(args, stream); }

}  // namespace xformers::cuda
