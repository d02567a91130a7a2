// Gradients of softmax from its result y: dx = y * (dy - sum(dy * y)); of its logarithm: dx = dy - exp(y) * sum(dy).
// Laid out as the forward; both rows stay in registers. Hidden columns are not read and get 0.
#include <algorithm>

#include "xformers/kernels/cuda/base/launch.h"
#include "xformers/kernels/cuda/softmax/softmax_cuda.h"
#include "xformers/kernels/cuda/softmax/softmax_row.cuh"

namespace xformers::cuda {
namespace {

struct BackwardArgs {
  SoftmaxBwdParams p;
  SoftmaxRows rows;
  RowPlan plan;
};

template <class T, int kVec, int kItems>
__global__ void __launch_bounds__(kMaxThreads<T>, 1) backward_rows(const __grid_constant__ BackwardArgs args) {
  using C = Compute<T>;
  using Reduce = GroupReduce<C, 1>;
  __shared__ typename Reduce::Shared shared;
  const ThreadGroup group(args.plan.group);
  Reduce reduce(shared, group);
  const int64_t width = args.rows.width, rows_per_block = args.plan.rows_per_block();
  const bool log = args.rows.log;

  for (int64_t first = blockIdx.x * rows_per_block; first < args.rows.count; first += gridDim.x * rows_per_block) {
    const int64_t row = first + group.index;
    const bool valid = row < args.rows.count;
    const int64_t visible = valid ? args.rows.visible(row) : 0;
    RowShare<T, kVec, kItems> out, dout;
    out.fetch(static_cast<const T*>(args.p.out) + row * width, group, visible, valid);
    dout.fetch(static_cast<const T*>(args.p.dout) + row * width, group, visible, valid);

    C sum[1] = {0};
    for_each_vector<kVec, kItems>(group, visible, valid, [&](int item, auto column) {
      C y[kVec], dy[kVec];
      numbers_of(out, item, column, y);
      numbers_of(dout, item, column, dy);
#pragma unroll
      for (int i = 0; i < kVec; ++i) {
        const C term = log ? dy[i] : dy[i] * y[i];
        sum[0] += column + i < visible ? term : C{0};
      }
    });
    reduce(sum, Sum());
    out.keep_packed();
    dout.keep_packed();

    T* const dx_row = static_cast<T*>(args.p.dx) + row * width;
    for_each_vector<kVec, kItems>(group, width, valid, [&](int item, auto column) {
      C dx[kVec] = {};
      if (column < visible) {
        C y[kVec], dy[kVec];
        numbers_of(out, item, column, y);
        numbers_of(dout, item, column, dy);
#pragma unroll
        for (int i = 0; i < kVec; ++i) {
          const C x = log ? dy[i] - exp_as<T>(y[i]) * sum[0] : y[i] * (dy[i] - sum[0]);
          dx[i] = column + i < visible ? x : C{0};
        }
      }
      store(dx_row + column, pack<T>(dx));
    });
  }
}

template <class T, int kVec, int kItems>
void run(const SoftmaxBwdParams& p, cudaStream_t stream) {
  const SoftmaxRows rows(p.shape);
  const RowPlan plan = plan_rows((p.shape.width + kVec - 1) / kVec, kItems, kThreads, kMaxThreads<T>);
  launch<0>(plan.in_registers ? backward_rows<T, kVec, kItems> : backward_rows<T, kVec, 0>,
            std::min<int64_t>(plan.blocks(rows.count), 1 << 30), 1, plan.threads, stream,
            BackwardArgs{.p = p, .rows = rows, .plan = plan});
}

}  // namespace

void softmax_backward(const SoftmaxBwdParams& p, const Stream& where) {
  const SoftmaxShape& s = p.shape;
  if (s.outer0 * s.outer1 * s.rows * s.width == 0) return;
  const auto stream = static_cast<cudaStream_t>(where.stream);
  const bool vectors = rows_are_aligned(p.out, s.width, s.dtype) && is_aligned(p.dout) && is_aligned(p.dx);
  with_element(s.dtype, [&](auto element) {
    using T = decltype(element);
    if constexpr (sizeof(T) == 8) {
      run<T, 1, 2>(p, stream);
    } else if (vectors) {
      run<T, kVectorOf<T>, 2>(p, stream);
    } else {
      run<T, 1, 4>(p, stream);
    }
  });
}

}  // namespace xformers::cuda
