// Threads: 32 columns x 32 shares of the chunks; then every warp adds up one column.
#include "xformers/kernels/cuda/base/column_sums.h"
#include "xformers/kernels/cuda/base/launch.h"
#include "xformers/kernels/cuda/base/reduce.cuh"
#include "xformers/kernels/cuda/base/vector.cuh"

namespace xformers::cuda {
namespace {

constexpr int kColumns = 32, kShares = 32;

template <class C, class T>
struct Args {
  const C* partials;
  int64_t chunks, columns, width;  // columns: width or twice that
  T *first, *second;
};

template <class C, class T>
__global__ void __launch_bounds__(kColumns* kShares) column_sums_kernel(const Args<C, T> args) {
  __shared__ C shared[kShares][kColumns + 1];
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t begin = int64_t{blockIdx.x} * kColumns, column = begin + lane;
  wait_for_kernel_before();  // the partial sums
  C sum = 0;
  if (column < args.columns) {
#pragma unroll 8
    for (int64_t chunk = warp; chunk < args.chunks; chunk += kShares)
      sum += args.partials[chunk * args.columns + column];
  }
  shared[warp][lane] = sum;
  __syncthreads();
  sum = warp_reduce(shared[lane][warp], Sum());
  const int64_t mine = begin + warp;
  if (lane > 0 || mine >= args.columns) return;
  T* const out = mine < args.width ? args.first : args.second;
  if (out) out[mine < args.width ? mine : mine - args.width] = to_element<T>(sum);
}

template <class C, class T>
void run(const Args<C, T>& args, const Stream& stream) {
  if (args.columns == 0) return;
  launch_after(column_sums_kernel<C, T>, (args.columns + kColumns - 1) / kColumns, 1, kColumns * kShares,
               static_cast<cudaStream_t>(stream.stream), args);
}

void run(const void* partials, DType partial_dtype, int64_t chunks, int64_t columns, int64_t width, void* first,
         void* second, DType out_dtype, const Stream& stream) {
  const auto with_types = [&]<class C, class T>(C, T) {
    run(Args<C, T>{.partials = static_cast<const C*>(partials),
                   .chunks = chunks,
                   .columns = columns,
                   .width = width,
                   .first = static_cast<T*>(first),
                   .second = static_cast<T*>(second)},
        stream);
  };
  if (partial_dtype == DType::kFloat64) {
    with_types(double{}, double{});
  } else {
    with_element(out_dtype, [&]<class T>(T) {
      if constexpr (sizeof(T) <= sizeof(float)) with_types(float{}, T{});
    });
  }
}

}  // namespace

void column_sums(const void* partials, DType partial_dtype, int64_t chunks, int64_t width, void* out, DType out_dtype,
                 const Stream& stream) {
  run(partials, partial_dtype, chunks, width, width, out, nullptr, out_dtype, stream);
}

void column_sums(const void* partials, DType partial_dtype, int64_t chunks, int64_t width, void* first, void* second,
                 DType out_dtype, const Stream& stream) {
  run(partials, partial_dtype, chunks, 2 * width, width, first, second, out_dtype, stream);
}

}  // namespace xformers::cuda
