// Softmax: a group of threads per row, which is read once and stays in registers as it came, together with its mask:
// powers are cheaper to compute twice than to keep (rows beyond 1024 threads x kItems vectors are read twice, through
// the L2 cache). Hidden columns have the score -inf. Where all are -inf, or one is NaN, the sum is NaN and with it the
// whole row.
#include <algorithm>

#include "xformers/kernels/cuda/base/launch.h"
#include "xformers/kernels/cuda/softmax/softmax_cuda.h"
#include "xformers/kernels/cuda/softmax/softmax_row.cuh"

namespace xformers::cuda {
namespace {

struct ForwardArgs {
  SoftmaxFwdParams p;
  SoftmaxRows rows;
  RowPlan plan;
};

template <class T, bool kMask>
constexpr int kForwardThreads = kMask ? 512 : kMaxThreads<T>;  // a mask takes registers too

template <class T, int kVec, int kItems, bool kMask>
__global__ void __launch_bounds__(kForwardThreads<T, kMask>, 1) forward_rows(const __grid_constant__ ForwardArgs args) {
  using C = Compute<T>;
  using Reduce = GroupReduce<C, 1>;
  __shared__ typename Reduce::Shared shared;
  const ThreadGroup group(args.plan.group);
  Reduce reduce(shared, group);
  const int64_t width = args.rows.width, rows_per_block = args.plan.rows_per_block();

  for (int64_t first = blockIdx.x * rows_per_block; first < args.rows.count; first += gridDim.x * rows_per_block) {
    const int64_t row = first + group.index;
    const bool valid = row < args.rows.count;
    const int64_t visible = valid ? args.rows.visible(row) : 0;
    const T* const x_row = static_cast<const T*>(args.p.x) + row * width;
    const T* const mask_row =
        static_cast<const T*>(args.p.mask.data) + (kMask && valid ? args.rows.mask_offset(args.p.mask, row) : 0);
    RowShare<T, kVec, kItems> x, mask;
    x.fetch(x_row, group, visible, valid);
    if constexpr (kMask) mask.fetch(mask_row, group, visible, valid);
    const auto score = [&](int item, auto column, C(&to)[kVec]) {
      if (column < visible) {
        numbers_of(x, item, column, to);
        if constexpr (kMask) {
          C bias[kVec];
          numbers_of(mask, item, column, bias);
#pragma unroll
          for (int i = 0; i < kVec; ++i) to[i] += bias[i];
        }
      }
      if (column + kVec <= visible) return;
#pragma unroll
      for (int i = 0; i < kVec; ++i) to[i] = column + i < visible ? to[i] : lowest<C>();
    };
    const auto for_each = [&](const auto& fn) { for_each_vector<kVec, kItems>(group, width, valid, fn); };
    const auto keep_packed = [&] {
      x.keep_packed();
      if constexpr (kMask) mask.keep_packed();
    };

    C top[1] = {lowest<C>()}, sum[1] = {0};
    if constexpr (kItems > 0) {
      for_each([&](int item, auto column) {
        C s[kVec];
        score(item, column, s);
#pragma unroll
        for (int i = 0; i < kVec; ++i) top[0] = max(top[0], s[i]);
      });
      reduce(top, Max());
      keep_packed();
      for_each([&](int item, auto column) {
        C s[kVec];
        score(item, column, s);
#pragma unroll
        for (int i = 0; i < kVec; ++i) sum[0] += exp_as<T>(s[i] - top[0]);
      });
    } else {  // maximum and sum in one pass, the sum always relative to the maximum so far
      C own = lowest<C>();
      for_each([&](int item, auto column) {
        C s[kVec];
        score(item, column, s);
        C higher = own;
#pragma unroll
        for (int i = 0; i < kVec; ++i) higher = max(higher, s[i]);
        if (higher == lowest<C>()) {  // minus itself that would be NaN
#pragma unroll
          for (int i = 0; i < kVec; ++i) sum[0] += s[i] != s[i] ? s[i] : C{0};
          return;
        }
        sum[0] *= exp_as<T>(own - higher);
        own = higher;
#pragma unroll
        for (int i = 0; i < kVec; ++i) sum[0] += exp_as<T>(s[i] - own);
      });
      top[0] = own;
      reduce(top, Max());
      sum[0] *= exp_as<T>(own - top[0]);
    }
    reduce(sum, Sum());
    keep_packed();

    T* const out = static_cast<T*>(args.p.out) + row * width;
    const C factor = C{1} / sum[0], shift = args.rows.log ? log(sum[0]) : C{0};
    for_each([&](int item, auto column) {
      C y[kVec];
      score(item, column, y);
#pragma unroll
      for (int i = 0; i < kVec; ++i) {
        y[i] -= top[0];
        y[i] = args.rows.log ? y[i] - shift : exp_as<T>(y[i]) * factor;
      }
      store(out + column, pack<T>(y));
    });
  }
}

// Rows with and without a mask are shared out alike, and give the same bits, as far as registers hold both.
template <class T, int kVec, int kItems, bool kMask>
void run(const SoftmaxFwdParams& p, cudaStream_t stream) {
  const SoftmaxRows rows(p.shape);
  const RowPlan plan = plan_rows((p.shape.width + kVec - 1) / kVec, kItems, kThreads, kForwardThreads<T, kMask>);
  launch<0>(plan.in_registers ? forward_rows<T, kVec, kItems, kMask> : forward_rows<T, kVec, 0, kMask>,
            std::min<int64_t>(plan.blocks(rows.count), 1 << 30), 1, plan.threads, stream,
            ForwardArgs{.p = p, .rows = rows, .plan = plan});
}

template <class T, int kVec, int kItems>
void run(const SoftmaxFwdParams& p, cudaStream_t stream) {
  p.mask.data ? run<T, kVec, kItems, true>(p, stream) : run<T, kVec, kItems, false>(p, stream);
}

}  // namespace

void softmax_forward(const SoftmaxFwdParams& p, const Stream& where) {
  const SoftmaxShape& s = p.shape;
  if (s.outer0 * s.outer1 * s.rows * s.width == 0) return;
  const auto stream = static_cast<cudaStream_t>(where.stream);
  const bool mask_fits = !p.mask.data || (rows_are_aligned(p.mask.data, p.mask.row_stride, s.dtype) &&
                                          rows_are_aligned(p.mask.data, p.mask.outer0_stride, s.dtype) &&
                                          rows_are_aligned(p.mask.data, p.mask.outer1_stride, s.dtype));
  const bool vectors = rows_are_aligned(p.x, s.width, s.dtype) && is_aligned(p.out) && mask_fits;
  with_element(s.dtype, [&](auto element) {
    using T = decltype(element);
    if constexpr (sizeof(T) == 8) {
      run<T, 1, 2>(p, stream);
    } else if (vectors) {
      run<T, kVectorOf<T>, 4>(p, stream);
    } else {
      run<T, 1, 4>(p, stream);
    }
  });
}

}  // namespace xformers::cuda
