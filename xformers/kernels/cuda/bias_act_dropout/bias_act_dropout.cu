// keep * activation(x + bias) / (1 - p) + residual and its gradients, one pass each; the mask is drawn, never stored. A
// thread keeps its columns' bias, and in backward their sums, in registers.
#include <initializer_list>

#include "xformers/kernels/cuda/base/column_sums.h"
#include "xformers/kernels/cuda/base/launch.h"
#include "xformers/kernels/cuda/base/row_tiles.cuh"
#include "xformers/kernels/cuda/bias_act_dropout/activation.cuh"
#include "xformers/kernels/cuda/bias_act_dropout/bias_act_dropout_cuda.h"
#include "xformers/kernels/cuda/bias_act_dropout/keep.cuh"

namespace xformers::cuda {
namespace {

constexpr int kBiasBlocks = 32;  // per multiprocessor: a bias is loaded once for several rows
constexpr int kSumsBlocks = 3;   // backward with sums: as many as run at a time
constexpr int kFwdRows = 4;      // in flight per thread, since there is one tensor to load

template <class T>
__device__ __forceinline__ T* at(const Rows& rows, int64_t row, int64_t column) {
  return static_cast<T*>(rows.data) + row * rows.stride + column;
}

template <class C, int kWidth>
__device__ __forceinline__ void load_bias(const void* bias, int64_t column, bool active, C (&to)[kWidth]) {
#pragma unroll
  for (int i = 0; i < kWidth; ++i) to[i] = bias && active ? static_cast<const C*>(bias)[column + i] : C(0);
}

struct FwdArgs {
  BiasActDropoutFwdParams call;
  RowDropout dropout;
  RowTiles tiles;
};

template <class T, int kWidth>
__global__ void __launch_bounds__(kTileThreads) forward_kernel(const __grid_constant__ FwdArgs args) {
  using C = Compute<T>;
  const BiasActDropoutFwdParams& p = args.call;
  const TileWalk walk(args.tiles);
  const int64_t column = walk.vector * kWidth;
  const RowDropout& dropout = args.dropout;
  const PhiloxKey key = dropout.key();
  C bias[kWidth];
  load_bias(p.bias, column, walk.row < walk.end, bias);
  for (int64_t row = walk.row; row < walk.end; row += args.tiles.stride) {
    Packed<T, kWidth> x[kFwdRows], residual[kFwdRows];
#pragma unroll
    for (int i = 0; i < kFwdRows; ++i) {
      if (row + i * walk.step >= walk.end) break;
      x[i] = load<kWidth>(at<const T>(p.x, row + i * walk.step, column));
      if (p.residual.data) residual[i] = load<kWidth>(at<const T>(p.residual, row + i * walk.step, column));
    }
#pragma unroll
    for (int i = 0; i < kFwdRows; ++i) {
      const int64_t own = row + i * walk.step;
      if (own >= walk.end) break;
      C values[kWidth];
      unpack(x[i], values);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) values[j] += bias[j];
      activate<T>(p.shape.activation, values);
      if (dropout.active) dropout.apply(key, own, column, values);
      if (p.residual.data) {
        C added[kWidth];
        unpack(residual[i], added);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) values[j] += added[j];
      }
      store(at<T>(p.out, own, column), pack<T>(values));
    }
  }
}

struct BwdArgs {
  BiasActDropoutBwdParams call;
  RowDropout dropout;
  RowTiles tiles;
  void* partials;  // [chunks, width]
};

template <class T, int kWidth, bool kSums>
__global__ void __launch_bounds__(kTileThreads) backward_kernel(const __grid_constant__ BwdArgs args) {
  using C = Compute<T>;
  const BiasActDropoutBwdParams& p = args.call;
  const TileWalk walk(args.tiles);
  const int64_t column = walk.vector * kWidth;
  const RowDropout& dropout = args.dropout;
  const PhiloxKey key = dropout.key();
  const bool needs_x = p.shape.activation != Activation::kNone;
  C bias[kWidth], sums[kWidth] = {};
  load_bias(p.bias, column, walk.row < walk.end, bias);
  for (int64_t row = walk.row; row < walk.end; row += args.tiles.stride) {
    Packed<T, kWidth> dout[kTileRows], x[kTileRows];
#pragma unroll
    for (int i = 0; i < kTileRows; ++i) {
      if (row + i * walk.step >= walk.end) break;
      dout[i] = load<kWidth>(at<const T>(p.dout, row + i * walk.step, column));
      if (needs_x) x[i] = load<kWidth>(at<const T>(p.x, row + i * walk.step, column));
    }
#pragma unroll
    for (int i = 0; i < kTileRows; ++i) {
      const int64_t own = row + i * walk.step;
      if (own >= walk.end) break;
      C gradient[kWidth];
      unpack(dout[i], gradient);
      if (dropout.active) dropout.apply(key, own, column, gradient);
      if (needs_x) {
        C values[kWidth];
        unpack(x[i], values);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) values[j] += bias[j];
        slope<T>(p.shape.activation, values);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) gradient[j] *= values[j];
      }
      if constexpr (kSums) {
#pragma unroll
        for (int j = 0; j < kWidth; ++j) sums[j] += gradient[j];
      }
      if (p.dx.data) store(at<T>(p.dx, own, column), pack<T>(gradient));
    }
  }
  if constexpr (kSums) {
    sum_over_block(sums, args.tiles.lanes);
    if (static_cast<int>(threadIdx.x) < args.tiles.lanes && walk.end > 0) {
      store_sums(static_cast<C*>(args.partials) + walk.chunk * p.shape.width + column, sums);
    }
  }
}

// fn.template operator()<T, kWidth>(): 16 bytes per access where all rows are aligned so, else element by element.
template <class Fn>
void with_types(const BiasActDropoutShape& shape, std::initializer_list<const Rows*> tensors, const Fn& fn) {
  bool aligned = true;
  for (const Rows* rows : tensors) aligned &= rows_are_aligned(rows->data, rows->stride, shape.dtype);
  with_element(shape.dtype, [&]<class T>(T) {
    if (aligned && shape.width % kVectorOf<T> == 0) {
      fn.template operator()<T, kVectorOf<T>>();
    } else {
      fn.template operator()<T, 1>();
    }
  });
}

}  // namespace

void bias_act_dropout_forward(const BiasActDropoutFwdParams& p, const Stream& stream) {
  if (p.shape.rows == 0 || p.shape.width == 0) return;
  with_types(p.shape, {&p.x, &p.residual, &p.out}, [&]<class T, int kWidth>() {
    const FwdArgs args{.call = p,
                       .dropout = RowDropout(p.shape.dropout),
                       .tiles = RowTiles(p.shape.rows, p.shape.width, kWidth, kBiasBlocks, kFwdRows)};
    launch<0>(forward_kernel<T, kWidth>, args.tiles.blocks(), 1, kTileThreads, static_cast<cudaStream_t>(stream.stream),
              args);
  });
}

size_t bias_act_dropout_backward_workspace(const BiasActDropoutBwdParams& p) {
  if (!p.dbias || p.shape.rows == 0 || p.shape.width == 0) return 0;
  size_t bytes = 0;
  with_types(p.shape, {&p.x, &p.dout, &p.dx}, [&]<class T, int kWidth>() {
    const RowTiles tiles(p.shape.rows, p.shape.width, kWidth, kSumsBlocks);
    bytes = static_cast<size_t>(tiles.chunks * p.shape.width) * sizeof(Compute<T>);
  });
  return bytes;
}

void bias_act_dropout_backward(const BiasActDropoutBwdParams& p, const Stream& stream) {
  if (!p.x.data && p.shape.activation != Activation::kNone && p.shape.rows > 0) {
    throw Error("bias_act_dropout: x is missing, expected the input of the activation.  Fix: keep it for backward.");
  }
  if (p.shape.width == 0 || (!p.dx.data && !p.dbias)) return;
  int64_t chunks = 0;
  if (p.shape.rows > 0) {
    with_types(p.shape, {&p.x, &p.dout, &p.dx}, [&]<class T, int kWidth>() {
      const BwdArgs args{.call = p,
                         .dropout = RowDropout(p.shape.dropout),
                         .tiles = RowTiles(p.shape.rows, p.shape.width, kWidth, p.dbias ? kSumsBlocks : kBiasBlocks),
                         .partials = stream.workspace};
      chunks = args.tiles.chunks;
      launch<0>(p.dbias ? backward_kernel<T, kWidth, true> : backward_kernel<T, kWidth, false>, args.tiles.blocks(), 1,
                kTileThreads, static_cast<cudaStream_t>(stream.stream), args);
    });
  }
  const DType compute = p.shape.dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
  if (p.dbias) column_sums(stream.workspace, compute, chunks, p.shape.width, p.dbias, compute, stream);
}

}  // namespace xformers::cuda
