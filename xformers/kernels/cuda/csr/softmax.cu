// Softmax of the values of each row, and its gradient. A row begins anywhere: 16-byte accesses that reach over its ends
// are read whole and written element by element.
#include "xformers/kernels/base/divide.h"
#include "xformers/kernels/cuda/csr/csr_cuda.h"
#include "xformers/kernels/cuda/csr/pattern.cuh"
#include "xformers/kernels/cuda/softmax/ragged_rows.cuh"
#include "xformers/kernels/params/checks.h"

namespace xformers::cuda {
namespace {

struct CsrSoftmaxArgs {
  CsrPattern pattern;
  const void *in = nullptr, *dout = nullptr;  // values; or the result and its gradient
  void* out = nullptr;
  int64_t batch = 0;
  Divisor<int64_t> rows{};
  RowPlan plan{};
};

// Numbers [first, end) of all values of the batch.
template <class T, int kVec>
struct CsrValues {
  using C = Compute<T>;
  const T *in, *dout;
  T* out;
  int64_t first, end, total;

  __device__ __forceinline__ int64_t base() const { return first / kVec * kVec; }
  __device__ __forceinline__ int vectors() const {
    return end > first ? static_cast<int>((end - base() + kVec - 1) / kVec) : 0;
  }
  __device__ __forceinline__ void fetch(const T* from, int v, C fill, C (&to)[kVec]) const {
    const int64_t at = base() + int64_t{v} * kVec;
    if (at + kVec <= total) {
      unpack(load<kVec>(from + at), to);
#pragma unroll
      for (int i = 0; i < kVec; ++i) to[i] = at + i >= first && at + i < end ? to[i] : fill;
    } else {
#pragma unroll
      for (int i = 0; i < kVec; ++i) to[i] = at + i >= first && at + i < end ? to_compute(from[at + i]) : fill;
    }
  }
  __device__ __forceinline__ void scores(int v, C (&to)[kVec]) const { fetch(in, v, lowest<C>(), to); }
  __device__ __forceinline__ void numbers(int v, C (&y)[kVec], C (&dy)[kVec]) const {
    fetch(in, v, C{0}, y);
    fetch(dout, v, C{0}, dy);
  }
  __device__ __forceinline__ void write(int v, const C (&y)[kVec]) const {
    const int64_t at = base() + int64_t{v} * kVec;
    if (at >= first && at + kVec <= end) return store(out + at, pack<T>(y));
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
      if (at + i >= first && at + i < end) out[at + i] = to_element<T>(y[i]);
    }
  }
};

template <class T, int kVec>
struct CsrRows {
  static constexpr bool kEmptyIsZero = false;
  const CsrSoftmaxArgs& args;
  int64_t count;

  __device__ __forceinline__ CsrValues<T, kVec> at(int64_t index) const {
    const auto [batch, row] = args.rows.divide(index);
    const Places places = places_of_row(args.pattern.row_offsets, row, args.pattern.nnz);
    const int64_t offset = batch * args.pattern.nnz;
    return {static_cast<const T*>(args.in),
            static_cast<const T*>(args.dout),
            static_cast<T*>(args.out),
            offset + places.begin,
            offset + places.end,
            args.batch * args.pattern.nnz};
  }
};

template <class T, int kVec>
__global__ void __maxnreg__(80) csr_softmax_rows(const __grid_constant__ CsrSoftmaxArgs args) {
  wait_for_kernel_before();
  softmax_of_ragged_rows<T, kVec>(CsrRows<T, kVec>{args, args.batch * args.pattern.rows}, args.plan);
}

template <class T, int kVec>
__global__ void __maxnreg__(72) csr_softmax_gradients(const __grid_constant__ CsrSoftmaxArgs args) {
  wait_for_kernel_before();
  softmax_gradients_of_ragged_rows<T, kVec>(CsrRows<T, kVec>{args, args.batch * args.pattern.rows}, args.plan, 1);
}

void launch_softmax_of_values(DType dtype, CsrSoftmaxArgs args, const Stream& where, bool backward) {
  if (args.batch == 0 || args.pattern.nnz == 0 || args.pattern.rows == 0) return;
  args.rows = Divisor<int64_t>(args.pattern.rows);
  with_vectors(dtype, is_aligned(args.in) && is_aligned(args.dout) && is_aligned(args.out), [&]<class T, int kVec>() {
    args.plan = plan_ragged_rows(args.pattern.nnz / args.pattern.rows / kVec + 1,
                                 backward ? kRaggedBackwardItems : kRaggedItems, /*most=*/32);
    launch_rows(backward ? csr_softmax_gradients<T, kVec> : csr_softmax_rows<T, kVec>, args.plan,
                args.batch * args.pattern.rows, args, where);
  });
}

}  // namespace

void csr_softmax_forward(const CsrSoftmaxFwdParams& p, const Stream& where) {
  check(p);
  launch_softmax_of_values(p.dtype, {.pattern = p.pattern, .in = p.values, .out = p.out, .batch = p.batch}, where,
                           /*backward=*/false);
}

void csr_softmax_backward(const CsrSoftmaxBwdParams& p, const Stream& where) {
  check(p);
  launch_softmax_of_values(p.dtype, {.pattern = p.pattern, .in = p.out, .dout = p.dout, .out = p.dx, .batch = p.batch},
                           where,
                           /*backward=*/true);
}

}  // namespace xformers::cuda
