// silu(x1) * x2 and its gradients, one pass each, with the sums of the gradients' columns (which are the biases'
// gradients) taken along.
#include "xformers/kernels/cuda/base/column_sums.h"
#include "xformers/kernels/cuda/base/row_tiles.cuh"
#include "xformers/kernels/cuda/base/sigmoid.cuh"
#include "xformers/kernels/cuda/swiglu/gate_cuda.h"
#include "xformers/kernels/params/checks.h"

namespace xformers::cuda {
namespace {

constexpr int kBlocks = 4;  // of a backward without sums that run at a time per multiprocessor

struct FwdArgs {
  GateFwdParams gate;
  RowTiles tiles;
};

template <class T, int kWidth>
__global__ void __launch_bounds__(kTileThreads) gate_forward_rows(const __grid_constant__ FwdArgs args) {
  const GateFwdParams& p = args.gate;
  const TileWalk walk(args.tiles);
  const int64_t column = walk.vector * kWidth;
  const int count = walk.count(walk.row);
  const TileColumn<const T> x1s(p.x1, walk, walk.row, column), x2s(p.x2, walk, walk.row, column);
  const TileColumn<T> hs(p.h, walk, walk.row, column);
  wait_for_kernel_before();
  let_next_kernel_start();
  Packed<T, kWidth> x1[kTileRows], x2[kTileRows];
#pragma unroll
  for (int i = 0; i < kTileRows; ++i) {
    if (i >= count) break;
    x1[i] = load<kWidth>(x1s[i]);
    x2[i] = load<kWidth>(x2s[i]);
  }
#pragma unroll
  for (int i = 0; i < kTileRows; ++i) {
    if (i >= count) break;
    Compute<T> a[kWidth], b[kWidth];
    unpack(x1[i], a);
    unpack(x2[i], b);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) a[j] = a[j] * sigmoid<T>(a[j]) * b[j];
    store(hs[i], pack<T>(a));
  }
}

struct BwdArgs {
  GateBwdParams gate;
  RowTiles tiles;
  void* partials;  // [chunks, 2, width]
};

// The thread's rows from `row` on, added to sums.
template <class T, int kWidth, bool kSums>
__device__ __forceinline__ void gate_backward_rows(const GateBwdParams& p, const TileWalk& walk, int64_t row,
                                                   int64_t column, Compute<T> (&sums)[2][kWidth]) {
  using C = Compute<T>;
  const int count = walk.count(row);
  const TileColumn<const T> x1s(p.x1, walk, row, column), x2s(p.x2, walk, row, column), dhs(p.dh, walk, row, column);
  const TileColumn<T> dx1s(p.dx1, walk, row, column), dx2s(p.dx2, walk, row, column), hs(p.h, walk, row, column);
  Packed<T, kWidth> x1[kTileRows], x2[kTileRows], dh[kTileRows];
#pragma unroll
  for (int i = 0; i < kTileRows; ++i) {
    if (i >= count) break;
    x1[i] = load<kWidth>(x1s[i]);
    x2[i] = load<kWidth>(x2s[i]);
    dh[i] = load<kWidth>(dhs[i]);
  }
#pragma unroll
  for (int i = 0; i < kTileRows; ++i) {
    if (i >= count) break;
    C a[kWidth], b[kWidth], g[kWidth];
    unpack(x1[i], a);
    unpack(x2[i], b);
    unpack(dh[i], g);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      const C s = sigmoid<T>(a[j]), silu = a[j] * s, slope = s * (1 + a[j] * (1 - s));
      a[j] = g[j] * b[j] * slope;  // dx1
      b[j] = silu * b[j];          // h
      g[j] = g[j] * silu;          // dx2
      if constexpr (kSums) sums[0][j] += a[j], sums[1][j] += g[j];
    }
    store(dx1s[i], pack<T>(a));
    store(dx2s[i], pack<T>(g));
    if (p.h.data) store(hs[i], pack<T>(b));
  }
}

// Without sums a thread takes its rows and is done.
template <class T, int kWidth, bool kSums>
__global__ void __launch_bounds__(kTileThreads, kSums ? kSumBlocks : kBlocks)
    gate_backward_kernel(const __grid_constant__ BwdArgs args) {
  using C = Compute<T>;
  const GateBwdParams& p = args.gate;
  const TileWalk walk(args.tiles);
  const int64_t column = walk.vector * kWidth;
  C sums[2][kWidth] = {};
  wait_for_kernel_before();
  let_next_kernel_start();
  if constexpr (!kSums) {
    gate_backward_rows<T, kWidth, kSums>(p, walk, walk.row, column, sums);
  } else {
    for (int64_t row = walk.row; row < walk.end; row += args.tiles.stride) {
      gate_backward_rows<T, kWidth, kSums>(p, walk, row, column, sums);
    }
    C* const to = static_cast<C*>(args.partials) + walk.chunk * 2 * p.width + column;
#pragma unroll
    for (int which = 0; which < 2; ++which) {
      if (which > 0) __syncthreads();
      sum_over_block(sums[which], args.tiles.lanes());
      if (static_cast<int>(threadIdx.x) < args.tiles.lanes() && walk.end > 0) {
        store(to + which * p.width, pack<C>(sums[which]));
      }
    }
  }
}

// fn.template operator()<T, kWidth>()
template <class Fn>
void with_backward_types(const GateBwdParams& p, const Fn& fn) {
  with_vectors(p.dtype, rows_fit({&p.x1, &p.x2, &p.dh, &p.dx1, &p.dx2, &p.h}, p.width, p.dtype), fn);
}

}  // namespace

void gate_forward(const GateFwdParams& p, const Stream& stream) {
  check(p);
  if (p.rows == 0 || p.width == 0) return;
  with_vectors(p.dtype, rows_fit({&p.x1, &p.x2, &p.h}, p.width, p.dtype), [&]<class T, int kWidth>() {
    const FwdArgs args{.gate = p, .tiles = RowTiles(p.rows, p.width, kWidth, /*most=*/0)};
    launch_rows(gate_forward_rows<T, kWidth>, args.tiles, args, stream);
  });
}

size_t gate_backward_workspace(const GateBwdParams& p, bool sums) {
  if (!sums || p.rows == 0 || p.width == 0) return 0;
  size_t bytes = 0;
  with_backward_types(p, [&]<class T, int kWidth>() {
    bytes =
        static_cast<size_t>(RowTiles(p.rows, p.width, kWidth, kSumBlocks).chunks * 2 * p.width) * sizeof(Compute<T>);
  });
  return bytes;
}

void gate_backward(const GateBwdParams& p, void* sums, const Stream& stream) {
  check(p);
  if (p.width == 0) return;
  int64_t chunks = 0;
  if (p.rows > 0) {
    with_backward_types(p, [&]<class T, int kWidth>() {
      const BwdArgs args{
          .gate = p, .tiles = RowTiles(p.rows, p.width, kWidth, sums ? kSumBlocks : 0), .partials = stream.workspace};
      chunks = args.tiles.chunks;
      launch_rows(sums ? gate_backward_kernel<T, kWidth, true> : gate_backward_kernel<T, kWidth, false>, args.tiles,
                  args, stream);
    });
  }
  if (sums) column_sums(stream.workspace, p.dtype, chunks, 2 * p.width, sums, p.dtype, stream);
}

}  // namespace xformers::cuda
