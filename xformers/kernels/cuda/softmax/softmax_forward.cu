// Softmax: a group of threads per row. Each thread takes the maximum of its own scores and the powers relative to that,
// which stay in registers; then the group agrees on the row's maximum and sum in one exchange. Hidden columns have the
// score -inf. Where all are -inf, or one is NaN, the sum is NaN and with it the whole row.
#include "xformers/kernels/cuda/softmax/softmax_cuda.h"
#include "xformers/kernels/cuda/softmax/softmax_long.cuh"
#include "xformers/kernels/params/checks.h"

namespace xformers::cuda {
namespace {

constexpr int kForwardItems = 4;  // accesses of a row per thread

template <class T, int kVec, int kItems, bool kMask, bool kCausal>
__global__ void __maxnreg__((kMask || kCausal ? 96 : 64))
    softmax_forward_rows(const __grid_constant__ SoftmaxForwardArgs args) {
  using C = Compute<T>;
  using Merge = SoftmaxMerge<T>;
  __shared__ typename Merge::Shared shared;
  wait_for_kernel_before();
  const ThreadGroup group(args.plan);
  const int64_t row = int64_t{blockIdx.x} * args.plan.rows_per_block + group.index;
  const bool valid = row < args.rows.count;
  const int width = valid ? static_cast<int>(args.rows.width) : 0;
  const int visible = kCausal && valid ? static_cast<int>(args.rows.visible(row)) : width;

  RowShare<T, kVec, kItems> x, mask;
  x.fetch_or(static_cast<const T*>(args.p.x) + row * args.rows.width, group, visible, to_element<T>(lowest<C>()));
  if constexpr (kMask) {
    const T* const data = static_cast<const T*>(args.p.mask.data);
    mask.fetch_or(data + (valid ? args.rows.mask_offset(args.p.mask, row) : 0), group, visible, to_element<T>(C{0}));
  }
  C s[kItems][kVec];  // scores; then, but for the logarithm, powers
  SoftmaxPart<T> part;
#pragma unroll
  for (int item = 0; item < kItems; ++item) {
    const int column = (item * group.size + group.rank) * kVec;
    unpack(x.items[item], s[item]);
    if constexpr (kMask) {
      C bias[kVec];
      unpack(mask.items[item], bias);
#pragma unroll
      for (int i = 0; i < kVec; ++i) s[item][i] += bias[i];
    }
    if (kCausal && column + kVec > visible) {
#pragma unroll
      for (int i = 0; i < kVec; ++i) s[item][i] = column + i < visible ? s[item][i] : lowest<C>();
    }
#pragma unroll
    for (int i = 0; i < kVec; ++i) part.top = max(part.top, s[item][i]);
  }
  const C base = part.base();
  const bool is_log = args.rows.log;
#pragma unroll
  for (int item = 0; item < kItems; ++item) {
    if (kCausal && (item * group.size + group.rank) * kVec >= visible) {  // hidden: powers of 0 without computing them
#pragma unroll
      for (int i = 0; i < kVec; ++i) s[item][i] = is_log ? lowest<C>() : C{0};
    } else if (is_log) {
#pragma unroll
      for (int i = 0; i < kVec; ++i) part.sum += exp_as<T>(s[item][i] - base);
    } else {
#pragma unroll
      for (int i = 0; i < kVec; ++i) part.sum += s[item][i] = exp_as<T>(s[item][i] - base);
    }
  }
  const SoftmaxPart<T> all = Merge(shared, group)(part);

  T* const out = static_cast<T*>(args.p.out) + row * args.rows.width;
  // In one form, y = s * factor - offset: powers scaled, or scores less the maximum and the logarithm of the sum.
  const C factor = is_log ? C{1} : part.relative_to(all.top) / all.sum, shift = is_log ? log(all.sum) : C{0};
  const C top = is_log ? all.top : C{0};
#pragma unroll
  for (int item = 0; item < kItems; ++item) {
    const int column = (item * group.size + group.rank) * kVec;
    if (column >= width) continue;
    C y[kVec];
#pragma unroll
    for (int i = 0; i < kVec; ++i) y[i] = (s[item][i] - top) * factor - shift;
    store(out + column, pack<T>(y));
  }
}

}  // namespace

void softmax_forward(const SoftmaxFwdParams& p, const Stream& where) {
  check(p);
  const DType dtype = p.shape.dtype;
  const SoftmaxMask& mask = p.mask;
  const bool mask_fits = !mask.data || (rows_are_aligned(mask.data, mask.row_stride, dtype) &&
                                        rows_are_aligned(mask.data, mask.outer0_stride, dtype) &&
                                        rows_are_aligned(mask.data, mask.outer1_stride, dtype));
  const bool vectors = rows_are_aligned(p.x, p.shape.width, dtype) && is_aligned(p.out) && mask_fits;
  with_vectors<false>(dtype, vectors, [&]<class T, int kVec>() {
    constexpr bool kMayStay = kVec > 1;  // a name: nvcc's host stub can't hold the comparison
    const auto run = [&](auto rows, auto causal_rows) {
      launch_softmax<T, kVec, kForwardItems>(SoftmaxForwardArgs{.p = p, .rows = SoftmaxRows(p.shape), .plan = {}},
                                             where, p.shape.causal ? causal_rows : rows,
                                             softmax_forward_long<T, kVec, false>,
                                             softmax_forward_long<T, kVec, kMayStay>);
    };
    mask.data ? run(softmax_forward_rows<T, kVec, kForwardItems, true, false>,
                    softmax_forward_rows<T, kVec, kForwardItems, true, true>)
              : run(softmax_forward_rows<T, kVec, kForwardItems, false, false>,
                    softmax_forward_rows<T, kVec, kForwardItems, false, true>);
  });
}

}  // namespace xformers::cuda
