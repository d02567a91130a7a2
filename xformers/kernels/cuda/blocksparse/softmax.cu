// Softmax of the rows of elements of a block-sparse matrix, and its gradient. A row lies in pieces, one per block.
#include "xformers/kernels/base/divide.h"
#include "xformers/kernels/cuda/blocksparse/blocksparse_cuda.h"
#include "xformers/kernels/cuda/csr/pattern.cuh"
#include "xformers/kernels/cuda/softmax/ragged_rows.cuh"
#include "xformers/kernels/params/checks.h"

namespace xformers::cuda {
namespace {

struct BlockSoftmaxArgs {
  BlockLayout layout;
  double scale = 1;
  bool causal = false;
  HeadMatrices bias{};
  const void *in = nullptr, *dout = nullptr;  // values; or the result and its gradient
  void* out = nullptr;
  int64_t batch = 0;
  bool bias_vectors = false;                     // of 16 bytes
  Divisor<int64_t> by_block{}, by_block_rows{};  // elements, and rows of blocks of all heads
  Divisor<int64_t> by_head{};                    // rows of blocks of one head
  Divisor<uint32_t> by_vectors{};                // of a piece
  RowPlan plan{};
};

template <class T, int kVec>
struct BlockElements {
  using C = Compute<T>;
  const BlockSoftmaxArgs& args;
  Places places;
  int64_t offset;  // of the row's first element in block 0 of its batch element
  int64_t row;     // in its head
  const T* bias;   // of the row

  __device__ __forceinline__ int vectors() const { return places.count() * static_cast<int>(args.by_vectors.size()); }
  struct Spot {
    int place;
    int in_row;  // of the piece
  };
  __device__ __forceinline__ Spot spot(int v) const {
    const auto [block, vector] = args.by_vectors.divide(static_cast<uint32_t>(v));
    return {places.begin + static_cast<int>(block), static_cast<int>(vector) * kVec};
  }
  __device__ __forceinline__ int64_t at(const Spot& s) const {
    return offset + s.place * args.layout.block * args.layout.block + s.in_row;
  }
  __device__ __forceinline__ void scores(int v, C (&to)[kVec]) const {
    const Spot s = spot(v);
    unpack(load<kVec>(static_cast<const T*>(args.in) + at(s)), to);
    const C scale = static_cast<C>(args.scale);
#pragma unroll
    for (int i = 0; i < kVec; ++i) to[i] *= scale;
    if (!bias && !args.causal) return;
    const int64_t column =
        inside(args.layout.column_indices[s.place], args.layout.block_columns) * args.layout.block + s.in_row;
    if (bias && args.bias_vectors) {
      C added[kVec];
      unpack(load<kVec>(bias + column), added);
#pragma unroll
      for (int i = 0; i < kVec; ++i) to[i] += added[i];
    } else if (bias) {
#pragma unroll
      for (int i = 0; i < kVec; ++i) to[i] += to_compute(bias[(column + i) * args.bias.column_stride]);
    }
    if (args.causal && column + kVec - 1 > row) {
#pragma unroll
      for (int i = 0; i < kVec; ++i) to[i] = column + i <= row ? to[i] : lowest<C>();
    }
  }
  __device__ __forceinline__ void numbers(int v, C (&y)[kVec], C (&dy)[kVec]) const {
    const int64_t from = at(spot(v));
    unpack(load<kVec>(static_cast<const T*>(args.in) + from), y);
    unpack(load<kVec>(static_cast<const T*>(args.dout) + from), dy);
  }
  __device__ __forceinline__ void write(int v, const C (&y)[kVec]) const {
    store(static_cast<T*>(args.out) + at(spot(v)), pack<T>(y));
  }
};

template <class T, int kVec>
struct BlockRows {
  static constexpr bool kEmptyIsZero = true;
  const BlockSoftmaxArgs& args;
  int64_t count;

  __device__ __forceinline__ BlockElements<T, kVec> at(int64_t index) const {
    const BlockLayout& layout = args.layout;
    const auto [block_row_of_all, in_block] = args.by_block.divide(index);
    const auto [batch, block_row] = args.by_block_rows.divide(block_row_of_all);
    const auto [head, in_head] = args.by_head.divide(block_row);
    const int64_t row = in_head * layout.block + in_block;
    const T* const bias = args.bias.data ? static_cast<const T*>(args.bias.data) + batch * args.bias.batch_stride +
                                               head * args.bias.head_stride + row * args.bias.row_stride
                                         : nullptr;
    return {args, places_of_row(layout.row_offsets, block_row, layout.nnz),
            (batch * layout.nnz * layout.block + in_block) * layout.block, row, bias};
  }
};

template <class T, int kVec>
__global__ void __maxnreg__(80) block_softmax_rows(const __grid_constant__ BlockSoftmaxArgs args) {
  wait_for_kernel_before();
  softmax_of_ragged_rows<T, kVec>(BlockRows<T, kVec>{args, args.batch * args.by_block_rows.size() * args.layout.block},
                                  args.plan);
}

template <class T, int kVec>
__global__ void __maxnreg__(72) block_softmax_gradients(const __grid_constant__ BlockSoftmaxArgs args) {
  wait_for_kernel_before();
  softmax_gradients_of_ragged_rows<T, kVec>(
      BlockRows<T, kVec>{args, args.batch * args.by_block_rows.size() * args.layout.block}, args.plan,
      static_cast<Compute<T>>(args.scale));
}

void launch_softmax_of_blocks(DType dtype, BlockSoftmaxArgs args, const Stream& where, bool backward) {
  const BlockLayout& layout = args.layout;
  const int64_t block_rows = layout.heads * layout.block_rows;
  if (args.batch == 0 || layout.nnz == 0 || block_rows == 0 || layout.block_columns == 0) return;
  const HeadMatrices& bias = args.bias;
  args.bias_vectors = bias.column_stride == 1 && rows_are_aligned(bias.data, bias.row_stride, dtype) &&
                      rows_are_aligned(bias.data, bias.head_stride, dtype) &&
                      rows_are_aligned(bias.data, bias.batch_stride, dtype);
  args.by_block = Divisor<int64_t>(layout.block);
  args.by_block_rows = Divisor<int64_t>(block_rows);
  args.by_head = Divisor<int64_t>(layout.block_rows);
  const bool vectors = is_aligned(args.in) && is_aligned(args.dout) && is_aligned(args.out);
  with_vectors(dtype, vectors, [&]<class T, int kVec>() {
    args.by_vectors = Divisor<uint32_t>(layout.block / kVec);
    args.plan = plan_ragged_rows(layout.nnz * (layout.block / kVec) / block_rows,
                                 backward ? kRaggedBackwardItems : kRaggedItems, /*most=*/kRaggedThreads);
    launch_rows(backward ? block_softmax_gradients<T, kVec> : block_softmax_rows<T, kVec>, args.plan,
                args.batch * block_rows * layout.block, args, where);
  });
}

}  // namespace

void block_softmax_forward(const BlockSoftmaxFwdParams& p, const Stream& where) {
  check(p);
  launch_softmax_of_blocks(p.dtype,
                           {.layout = p.layout,
                            .scale = p.scale,
                            .causal = p.causal,
                            .bias = p.bias,
                            .in = p.values,
                            .out = p.out,
                            .batch = p.batch},
                           where, /*backward=*/false);
}

void block_softmax_backward(const BlockSoftmaxBwdParams& p, const Stream& where) {
  check(p);
  launch_softmax_of_blocks(
      p.dtype, {.layout = p.layout, .scale = p.scale, .in = p.out, .dout = p.dout, .out = p.dx, .batch = p.batch},
      where, /*backward=*/true);
}

}  // namespace xformers::cuda
