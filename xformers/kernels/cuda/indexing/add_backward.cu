// The backward of scaled_index_add:
//   dsource[i, m] = alpha * scaling * dout[index[i], m],  dscaling = sum over i, m of alpha * dout[index[i], m] *
//   source[i, m]
// in one pass. A thread keeps its vector of columns and walks over the rows (i, m), several of them at once; with
// dscaling as many blocks as the GPU holds leave one partial sum per column each, which a second kernel adds in order.
#include <algorithm>

#include "xformers/kernels/base/divide.h"
#include "xformers/kernels/cuda/base/column_sums.h"
#include "xformers/kernels/cuda/base/device.h"
#include "xformers/kernels/cuda/base/launch.h"
#include "xformers/kernels/cuda/base/vector.cuh"
#include "xformers/kernels/cuda/indexing/indexing_cuda.h"
#include "xformers/kernels/cuda/indexing/places.cuh"
#include "xformers/kernels/params/checks.h"

namespace xformers::cuda {
namespace {

constexpr int kThreads = 256, kBlocksPerMultiprocessor = 2;

template <class T>
constexpr int rows_ahead = sizeof(T) == 8 ? 2 : 4;

struct BackwardArgs {
  ScaledIndexAddBwdParams p;
  Divisor<int64_t> by_middle;
  int columns = kThreads;  // threads side by side, a power of two; the other threads of a block take other rows
  void* partials = nullptr;
};

template <class T, int kVec, bool kSum>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    index_add_backward_rows(const __grid_constant__ BackwardArgs args) {
  using C = Compute<T>;
  constexpr int kAhead = rows_ahead<T>;
  __shared__ C shared[kSum ? kThreads * kVec : 1];
  const ScaledIndexAddBwdParams& p = args.p;
  const int x = threadIdx.x & (args.columns - 1), y = threadIdx.x / args.columns, height = kThreads / args.columns;
  const int64_t column = (blockIdx.y * int64_t{args.columns} + x) * kVec;
  const bool valid = column < p.width;
  const int64_t rows = p.num_indices * p.middle, step = gridDim.x * int64_t{height};
  const int64_t step_place = args.by_middle.quotient(step), step_middle = step - step_place * p.middle;
  int64_t row = blockIdx.x * int64_t{height} + y;
  int64_t place = args.by_middle.quotient(row), middle = row - place * p.middle;
  wait_for_kernel_before();
  const C alpha = static_cast<C>(p.alpha);
  C factor[kVec];
#pragma unroll
  for (int i = 0; i < kVec; ++i) factor[i] = 1;
  if (valid && p.scaling) load_as(p.scaling, p.scaling_dtype, column, factor);
  const auto advance = [&](int64_t& i, int64_t& m) {
    i += step_place, m += step_middle;
    if (m >= p.middle) m -= p.middle, ++i;
  };
  C sum[kVec] = {};
  while (row < rows) {
    Packed<T, kVec> dout[kAhead], source[kAhead];
    bool there[kAhead], known[kAhead];
    int64_t to_place = place, to_middle = middle;
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      there[u] = valid && row < rows;
      known[u] = false;
      if (there[u]) {
        const int64_t from = p.index[place];
        known[u] = in_range(from, p.rows);
        if (known[u]) {
          dout[u] = load<kVec>(static_cast<const T*>(p.dout.data) + from * p.dout.row_stride +
                               middle * p.dout.middle_stride + column);
          if constexpr (kSum) {
            source[u] = load<kVec>(static_cast<const T*>(p.source.data) + place * p.source.row_stride +
                                   middle * p.source.middle_stride + column);
          }
        }
      }
      advance(place, middle);
      row += step;
    }
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      C gradient[kVec] = {};
      if (known[u]) {
        unpack(dout[u], gradient);
#pragma unroll
        for (int i = 0; i < kVec; ++i) gradient[i] *= alpha;
        if constexpr (kSum) {
          C s[kVec];
          unpack(source[u], s);
#pragma unroll
          for (int i = 0; i < kVec; ++i) sum[i] += gradient[i] * s[i];
        }
      }
      if (there[u] && p.dsource.data) {
#pragma unroll
        for (int i = 0; i < kVec; ++i) gradient[i] *= factor[i];
        store(static_cast<T*>(p.dsource.data) + to_place * p.dsource.row_stride + to_middle * p.dsource.middle_stride +
                  column,
              pack<T>(gradient));
      }
      advance(to_place, to_middle);
    }
  }

  if constexpr (kSum) {
#pragma unroll
    for (int i = 0; i < kVec; ++i) shared[threadIdx.x * kVec + i] = sum[i];
    __syncthreads();
    if (y > 0 || !valid) return;
    for (int other = 1; other < height; ++other) {
#pragma unroll
      for (int i = 0; i < kVec; ++i) sum[i] += shared[(other * args.columns + x) * kVec + i];
    }
    C* const partial = static_cast<C*>(args.partials) + blockIdx.x * p.width + column;
    store(partial, pack<C>(sum));
  }
}

struct Layout {
  int vec = 1, columns = kThreads;
  int64_t across = 1, blocks = 1;  // blocks side by side, and over the rows
};

Layout layout_of(const ScaledIndexAddBwdParams& p) {
  const auto fits = [&](const RowsTensor& t) {
    return !t.data ||
           (rows_are_aligned(t.data, t.row_stride, p.dtype) && rows_are_aligned(t.data, t.middle_stride, p.dtype));
  };
  Layout layout;
  const int64_t widest = 16 / static_cast<int64_t>(size_of(p.dtype));
  const bool sources_fit = fits(p.dout) && fits(p.dsource) && (!p.dscaling || fits(p.source)) && is_aligned(p.scaling);
  if (p.width % widest == 0 && sources_fit) layout.vec = static_cast<int>(widest);
  const int64_t vectors = p.width / layout.vec, rows = p.num_indices * p.middle;
  while (layout.columns > 1 && layout.columns / 2 >= vectors) layout.columns /= 2;
  // Neither many idle threads nor blocks of few rows: 1536 bf16 are three times 64 threads.
  while (layout.columns > 32 && (vectors + layout.columns - 1) / layout.columns * layout.columns * 8 > vectors * 9) {
    layout.columns /= 2;
  }
  layout.across = (vectors + layout.columns - 1) / layout.columns;
  const int64_t height = kThreads / layout.columns, wanted = (rows + height * 4 - 1) / (height * 4);
  const int64_t held =
      std::max<int64_t>(1, kBlocksPerMultiprocessor * current_device().multiprocessors / layout.across);
  layout.blocks = std::min(wanted, p.dscaling ? held : int64_t{1} << 30);
  return layout;
}

template <class T, int kVec>
void run(const ScaledIndexAddBwdParams& p, const Layout& layout, const Stream& where) {
  const BackwardArgs args{
      .p = p, .by_middle = Divisor<int64_t>(p.middle), .columns = layout.columns, .partials = where.workspace};
  launch_after(p.dscaling ? index_add_backward_rows<T, kVec, true> : index_add_backward_rows<T, kVec, false>,
               layout.blocks, layout.across, kThreads, static_cast<cudaStream_t>(where.stream), args);
  if (!p.dscaling) return;
  column_sums(where.workspace, compute_dtype(p.dtype), layout.blocks, p.width, p.dscaling, p.scaling_dtype, where);
}

}  // namespace

size_t scaled_index_add_backward_workspace(const ScaledIndexAddBwdParams& p) {
  if (!p.dscaling || p.width == 0 || p.num_indices * p.middle == 0) return 0;
  return static_cast<size_t>(layout_of(p).blocks * p.width) * size_of(compute_dtype(p.dtype));
}

void scaled_index_add_backward(const ScaledIndexAddBwdParams& p, const Stream& where) {
  check(p, WeightTypes::kAlso16Bit);
  if (p.width == 0 || (!p.dscaling && !p.dsource.data)) return;
  if (p.num_indices * p.middle == 0) {
    if (!p.dscaling) return;
    XFORMERS_CUDA_CHECK(cudaMemsetAsync(p.dscaling, 0, static_cast<size_t>(p.width) * size_of(p.scaling_dtype),
                                        static_cast<cudaStream_t>(where.stream)));
    return;
  }
  const Layout layout = layout_of(p);
  with_vectors(p.dtype, layout.vec > 1, [&]<class T, int kVec>() { run<T, kVec>(p, layout, where); });
}

}  // namespace xformers::cuda
