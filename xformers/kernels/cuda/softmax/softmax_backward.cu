// Gradients of softmax from its result y: dx = y * (dy - sum(dy * y)); of its logarithm: dx = dy - exp(y) * sum(dy).
// Laid out as the forward; both rows stay in registers. Hidden columns are not read and get 0.
#include "xformers/kernels/cuda/softmax/softmax_cuda.h"
#include "xformers/kernels/cuda/softmax/softmax_long.cuh"
#include "xformers/kernels/params/checks.h"

namespace xformers::cuda {
namespace {

template <int kVec>
constexpr int kBackwardItems = kVec == 1 ? 4 : 2;  // of both rows

template <class T, int kVec, int kItems, bool kCausal>
__global__ void __maxnreg__((kCausal || sizeof(T) == 8 ? 72 : 48))
    softmax_backward_rows(const __grid_constant__ SoftmaxBackwardArgs args) {
  using C = Compute<T>;
  using Reduce = GroupReduce<C, 1>;
  __shared__ typename Reduce::Shared shared;
  wait_for_kernel_before();
  const ThreadGroup group(args.plan);
  const int64_t row = int64_t{blockIdx.x} * args.plan.rows_per_block + group.index;
  const bool valid = row < args.rows.count, is_log = args.rows.log;
  const int width = valid ? static_cast<int>(args.rows.width) : 0;
  const int visible = kCausal && valid ? static_cast<int>(args.rows.visible(row)) : width;
  RowShare<T, kVec, kItems> out, dout;
  out.fetch_or(static_cast<const T*>(args.p.out) + row * args.rows.width, group, visible, to_element<T>(C{0}));
  dout.fetch_or(static_cast<const T*>(args.p.dout) + row * args.rows.width, group, visible, to_element<T>(C{0}));
  const auto numbers = [&](int item, C(&y)[kVec], C(&dy)[kVec]) {
    unpack(out.items[item], y);
    unpack(dout.items[item], dy);
    const int column = (item * group.size + group.rank) * kVec;
    if (kCausal && column + kVec > visible) {  // what is hidden adds nothing
#pragma unroll
      for (int i = 0; i < kVec; ++i) {
        y[i] = column + i < visible ? y[i] : C{0};
        dy[i] = column + i < visible ? dy[i] : C{0};
      }
    }
  };

  C sum[1] = {0};
#pragma unroll
  for (int item = 0; item < kItems; ++item) {
    C y[kVec], dy[kVec];
    numbers(item, y, dy);
    if (is_log) {
#pragma unroll
      for (int i = 0; i < kVec; ++i) sum[0] += dy[i];
    } else {
#pragma unroll
      for (int i = 0; i < kVec; ++i) sum[0] += dy[i] * y[i];
    }
  }
  Reduce(shared, group)(sum, Sum());
  out.keep_packed();
  dout.keep_packed();

  T* const dx_row = static_cast<T*>(args.p.dx) + row * args.rows.width;
#pragma unroll
  for (int item = 0; item < kItems; ++item) {
    const int column = (item * group.size + group.rank) * kVec;
    if (column >= width) continue;
    C y[kVec], dy[kVec];
    numbers(item, y, dy);
    const bool hidden = kCausal && column >= visible;
    if (!hidden && is_log) {
#pragma unroll
      for (int i = 0; i < kVec; ++i) {
        dy[i] -= exp_as<T>(y[i]) * sum[0];
        if constexpr (kCausal) dy[i] = column + i < visible ? dy[i] : C{0};
      }
    } else if (!hidden) {
#pragma unroll
      for (int i = 0; i < kVec; ++i) dy[i] = y[i] * (dy[i] - sum[0]);
    }
    store(dx_row + column, pack<T>(dy));
  }
}

}  // namespace

void softmax_backward(const SoftmaxBwdParams& p, const Stream& where) {
  check(p);
  const bool vectors = rows_are_aligned(p.out, p.shape.width, p.shape.dtype) && is_aligned(p.dout) && is_aligned(p.dx);
  with_vectors<false>(p.shape.dtype, vectors, [&]<class T, int kVec>() {
    constexpr int kItems = kBackwardItems<kVec>;
    constexpr bool kMayStay = kVec > 1;  // a name: nvcc's host stub can't hold the comparison
    launch_softmax<T, kVec, kItems>(
        SoftmaxBackwardArgs{.p = p, .rows = SoftmaxRows(p.shape), .plan = {}}, where,
        p.shape.causal ? softmax_backward_rows<T, kVec, kItems, true> : softmax_backward_rows<T, kVec, kItems, false>,
        softmax_backward_long<T, kVec, false>, softmax_backward_long<T, kVec, kMayStay>);
  });
}

}  // namespace xformers::cuda
