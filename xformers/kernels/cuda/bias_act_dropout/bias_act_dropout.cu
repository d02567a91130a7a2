// keep * activation(x + bias) / (1 - p) + residual and its gradients, one pass each; the mask is drawn, never stored. A
// thread keeps its columns' bias, and in backward their sums, in registers.
#include "xformers/kernels/cuda/base/column_sums.h"
#include "xformers/kernels/cuda/base/row_tiles.cuh"
#include "xformers/kernels/cuda/bias_act_dropout/activation.cuh"
#include "xformers/kernels/cuda/bias_act_dropout/bias_act_dropout_cuda.h"
#include "xformers/kernels/cuda/bias_act_dropout/keep.cuh"
#include "xformers/kernels/params/checks.h"

namespace xformers::cuda {
namespace {

constexpr int kOneTensorRows = 8;  // at most in flight per thread, which is done then: that pays for a bias and a key
constexpr int kBlocksPerMultiprocessor = 3;  // that run at a time

// Of a backward, those that run at a time; with sums, all there are.
constexpr int backward_blocks(int activation) { return activation == static_cast<int>(Activation::kNone) ? 4 : 3; }

// The thread's part of the bias times `by`, zeros without one.
template <class C, int kWidth>
__device__ __forceinline__ void load_bias(const void* bias, DType dtype, int64_t column, bool active, C by,
                                          C (&to)[kWidth]) {
#pragma unroll
  for (int i = 0; i < kWidth; ++i) to[i] = 0;
  if (!bias || !active) return;
  load_as<kWidth>(bias, dtype, column, to);
#pragma unroll
  for (int i = 0; i < kWidth; ++i) to[i] *= by;
}

template <class C>
Factor<C> factor_of(const RowDropout& dropout) {
  return {.by = static_cast<C>(dropout.scale), .inverse = static_cast<C>(dropout.scale > 0 ? 1 / dropout.scale : 1)};
}

template <class C>
struct FwdArgs {
  BiasActDropoutFwdParams call;
  RowDropout dropout;
  C before;  // a factor of x + bias
  Factor<C> after;
  RowTiles tiles;
};

// kActivation: known at compile time where that pays, else kAny.
constexpr int kAny = -1;
template <int kActivation>
__device__ __forceinline__ Activation activation_of(const BiasActDropoutShape& shape) {
  return kActivation == kAny ? shape.activation : static_cast<Activation>(kActivation);
}

template <class T, int kWidth, int kActivation, bool kResidual>
__global__ void __launch_bounds__(kTileThreads, kBlocksPerMultiprocessor)
    bias_act_dropout_forward_rows(const __grid_constant__ FwdArgs<Compute<T>> args) {
  using C = Compute<T>;
  constexpr int kRows = kResidual ? kTileRows : kOneTensorRows;
  const BiasActDropoutFwdParams& p = args.call;
  const TileWalk walk(args.tiles);
  const int64_t column = walk.vector * kWidth;
  const int count = walk.count(walk.row);
  const TileColumn<const T> xs(p.x, walk, walk.row, column), residuals(p.residual, walk, walk.row, column);
  const TileColumn<T> outs(p.out, walk, walk.row, column);
  const RowDropout& dropout = args.dropout;
  wait_for_kernel_before();
  let_next_kernel_start();
  Packed<T, kWidth> x[kRows], residual[kRows];
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    if (i >= count) break;
    x[i] = load<kWidth>(xs[i]);
    if constexpr (kResidual) residual[i] = load<kWidth>(residuals[i]);
  }
  const RowDropout::State state = dropout.state();
  C bias[kWidth];
  load_bias(p.bias, p.shape.bias_dtype, column, count > 0, args.before, bias);
  const PhiloxKey key = state.key();
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    if (i >= count) break;
    const int64_t row = walk.row + i * walk.step;
    C values[kWidth];
    unpack(x[i], values);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) values[j] = values[j] * args.before + bias[j];
    activate<T>(activation_of<kActivation>(p.shape), args.after, values);
    constexpr bool kMaskPacked = !kResidual && sizeof(T) == 2 && kWidth == 8;
    if constexpr (!kMaskPacked) {
      if (dropout.active) dropout.apply(key, row, column, values);
    }
    if constexpr (kResidual) {
      C added[kWidth];
      unpack(residual[i], added);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) values[j] += added[j];
    }
    Packed<T, kWidth> out = pack<T>(values);
    if constexpr (kMaskPacked) {
      if (dropout.active) dropout.apply(key, row, column, out);
    }
    store(outs[i], out);
  }
}

template <class C>
struct BwdArgs {
  BiasActDropoutBwdParams call;
  RowDropout dropout;
  Factor<C> factor;
  RowTiles tiles;
  void* partials;  // [chunks, width]
};

// The thread's rows from `row` on, added to sums.
template <class T, int kWidth, int kActivation>
__device__ __forceinline__ void backward_rows(const BwdArgs<Compute<T>>& args, const TileWalk& walk,
                                              const PhiloxKey& key, int64_t row, int64_t column,
                                              const Compute<T> (&bias)[kWidth], Compute<T> (&sums)[kWidth]) {
  using C = Compute<T>;
  constexpr bool kBent = kActivation != static_cast<int>(Activation::kNone);
  const BiasActDropoutBwdParams& p = args.call;
  const RowDropout& dropout = args.dropout;
  const int count = walk.count(row);
  const TileColumn<const T> douts(p.dout, walk, row, column), xs(p.x, walk, row, column);
  const TileColumn<T> dxs(p.dx, walk, row, column);
  Packed<T, kWidth> dout[kTileRows], x[kTileRows];
#pragma unroll
  for (int i = 0; i < kTileRows; ++i) {
    if (i >= count) break;
    dout[i] = load<kWidth>(douts[i]);
    if constexpr (kBent) x[i] = load<kWidth>(xs[i]);
  }
#pragma unroll
  for (int i = 0; i < kTileRows; ++i) {
    if (i >= count) break;
    const int64_t own = row + i * walk.step;
    C gradient[kWidth];
    if constexpr (sizeof(T) == 2 && kWidth == 8) {
      if (dropout.active) dropout.apply(key, own, column, dout[i]);
      unpack(dout[i], gradient);
    } else {
      unpack(dout[i], gradient);
      if (dropout.active) dropout.apply(key, own, column, gradient);
    }
    if constexpr (kBent) {
      C values[kWidth];
      unpack(x[i], values);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) values[j] += bias[j];
      slope<T>(activation_of<kActivation>(p.shape), args.factor, values);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) gradient[j] *= values[j];
    } else {
#pragma unroll
      for (int j = 0; j < kWidth; ++j) gradient[j] *= args.factor.by;
    }
#pragma unroll
    for (int j = 0; j < kWidth; ++j) sums[j] += gradient[j];
    if (p.dx.data) store(dxs[i], pack<T>(gradient));
  }
}

// Without sums a thread takes its rows and is done.
template <class T, int kWidth, int kActivation, bool kSums>
__global__ void __launch_bounds__(kTileThreads, backward_blocks(kActivation))
    bias_act_dropout_backward_rows(const __grid_constant__ BwdArgs<Compute<T>> args) {
  using C = Compute<T>;
  const BiasActDropoutBwdParams& p = args.call;
  const TileWalk walk(args.tiles);
  const int64_t column = walk.vector * kWidth;
  wait_for_kernel_before();
  let_next_kernel_start();
  const PhiloxKey key = args.dropout.state().key();
  C bias[kWidth], sums[kWidth] = {};
  if constexpr (kActivation != static_cast<int>(Activation::kNone)) {
    load_bias(p.bias, p.shape.bias_dtype, column, walk.row < walk.end, C(1), bias);
  }
  if constexpr (!kSums) {
    backward_rows<T, kWidth, kActivation>(args, walk, key, walk.row, column, bias, sums);
  } else {
    for (int64_t row = walk.row; row < walk.end; row += args.tiles.stride) {
      backward_rows<T, kWidth, kActivation>(args, walk, key, row, column, bias, sums);
    }
    sum_over_block(sums, args.tiles.lanes());
    if (static_cast<int>(threadIdx.x) < args.tiles.lanes() && walk.end > 0) {
      store(static_cast<C*>(args.partials) + walk.chunk * p.shape.width + column, pack<C>(sums));
    }
  }
}

// fn.template operator()<kActivation>(): the common ones of 16-bit types by themselves, which spares the way past the
// others' code; kAny for the rest.
template <class T, int kWidth, class Fn>
void with_common_activation(Activation activation, const Fn& fn) {
  if constexpr (sizeof(T) == 2 && kWidth > 1) {
    if (activation == Activation::kRelu) return fn.template operator()<static_cast<int>(Activation::kRelu)>();
    if (activation == Activation::kGelu) return fn.template operator()<static_cast<int>(Activation::kGelu)>();
  }
  if (activation == Activation::kNone) return fn.template operator()<static_cast<int>(Activation::kNone)>();
  fn.template operator()<kAny>();
}

// fn.template operator()<T, kWidth>()
template <class Fn>
void with_backward_types(const BiasActDropoutBwdParams& p, const Fn& fn) {
  with_vectors(p.shape.dtype, rows_fit({&p.x, &p.dout, &p.dx}, p.shape.width, p.shape.dtype) && is_aligned(p.bias), fn);
}

// As many rows in flight as leave every multiprocessor blocks for two rounds.
RowTiles forward_tiles(const BiasActDropoutShape& shape, int width, int in_flight) {
  const int64_t enough = int64_t{2} * kBlocksPerMultiprocessor * current_device().multiprocessors;
  RowTiles tiles(shape.rows, shape.width, width, /*most=*/0, in_flight);
  while (tiles.in_flight > 1 && tiles.blocks() < enough) {
    tiles = RowTiles(shape.rows, shape.width, width, /*most=*/0, tiles.in_flight / 2);
  }
  return tiles;
}

}  // namespace

void bias_act_dropout_forward(const BiasActDropoutFwdParams& p, const Stream& stream) {
  check(p, WeightTypes::kAlso16Bit);
  if (p.shape.rows == 0 || p.shape.width == 0) return;
  const bool vectors = rows_fit({&p.x, &p.residual, &p.out}, p.shape.width, p.shape.dtype) && is_aligned(p.bias);
  with_vectors(p.shape.dtype, vectors, [&]<class T, int kWidth>() {
    using C = Compute<T>;
    const RowDropout dropout(p.shape.dropout);
    const Factor<C> factor = factor_of<C>(dropout);
    const bool early = is_homogeneous(p.shape.activation);
    const bool residual = p.residual.data != nullptr;
    const FwdArgs<C> args{.call = p,
                          .dropout = dropout,
                          .before = early ? factor.by : C(1),
                          .after = early ? Factor<C>{1, 1} : factor,
                          .tiles = forward_tiles(p.shape, kWidth, residual ? kTileRows : kOneTensorRows)};
    with_common_activation<T, kWidth>(p.shape.activation, [&]<int kActivation>() {
      launch_rows(residual ? bias_act_dropout_forward_rows<T, kWidth, kActivation, true>
                           : bias_act_dropout_forward_rows<T, kWidth, kActivation, false>,
                  args.tiles, args, stream);
    });
  });
}

namespace {

RowTiles backward_tiles(const BiasActDropoutBwdParams& p, int width) {
  return RowTiles(p.shape.rows, p.shape.width, width,
                  p.dbias ? backward_blocks(static_cast<int>(p.shape.activation)) : 0);
}

}  // namespace

size_t bias_act_dropout_backward_workspace(const BiasActDropoutBwdParams& p) {
  if (!p.dbias || p.shape.rows == 0 || p.shape.width == 0) return 0;
  size_t bytes = 0;
  with_backward_types(p, [&]<class T, int kWidth>() {
    bytes = static_cast<size_t>(backward_tiles(p, kWidth).chunks * p.shape.width) * sizeof(Compute<T>);
  });
  return bytes;
}

void bias_act_dropout_backward(const BiasActDropoutBwdParams& p, const Stream& stream) {
  check(p, WeightTypes::kAlso16Bit);
  if (p.shape.width == 0 || (!p.dx.data && !p.dbias)) return;
  int64_t chunks = 0;
  if (p.shape.rows > 0) {
    with_backward_types(p, [&]<class T, int kWidth>() {
      using C = Compute<T>;
      const RowDropout dropout(p.shape.dropout);
      const BwdArgs<C> args{.call = p,
                            .dropout = dropout,
                            .factor = factor_of<C>(dropout),
                            .tiles = backward_tiles(p, kWidth),
                            .partials = stream.workspace};
      chunks = args.tiles.chunks;
      with_common_activation<T, kWidth>(p.shape.activation, [&]<int kActivation>() {
        launch_rows(p.dbias ? bias_act_dropout_backward_rows<T, kWidth, kActivation, true>
                            : bias_act_dropout_backward_rows<T, kWidth, kActivation, false>,
                    args.tiles, args, stream);
      });
    });
  }
  if (!p.dbias) return;
  column_sums(stream.workspace, compute_dtype(p.shape.dtype), chunks, p.shape.width, p.dbias, p.shape.bias_dtype,
              stream);
}

}  // namespace xformers::cuda
