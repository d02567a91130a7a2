// Block-sparse products of fp32 and fp64 elements, whose sums have their own precision: plain multiply-adds. A block of
// 256 threads has a tile of kPiece rows and 64 columns, a thread kPiece / 16 rows and 4 columns of it; both operands
// pass through shared memory, 16 of the depth at a time.
#include "xformers/kernels/cuda/base/launch.h"
#include "xformers/kernels/cuda/blocksparse/product_tile.cuh"

namespace xformers::cuda {
namespace {

constexpr int kWideThreads = 256, kWideColumns = 64, kWideDepth = 16;

// kX numbers side by side, 16 deep, zeros where there are none.
template <int kX, class T, class XOffset>
__device__ __forceinline__ void stage_wide(T (*to)[kX + 1], const ProductSide& side, const T* base, int there,
                                           int64_t left, const XOffset& x_offset) {
  for (int i = threadIdx.x; i < kX * kWideDepth; i += kWideThreads) {
    const int x = side.x_contiguous ? i % kX : i / kWideDepth, k = side.x_contiguous ? i / kX : i % kWideDepth;
    to[k][x] = x < there && k < left ? base[x_offset(x) + k * side.k_stride] : T{0};
  }
}

template <class T, int kPiece>
__global__ void __launch_bounds__(kWideThreads) block_product_wide(const __grid_constant__ BlockProductArgs args) {
  constexpr int kRows = kPiece / 16;
  __shared__ T left[kWideDepth][kPiece + 1], right[kWideDepth][kWideColumns + 1];
  __shared__ ProductTile::Column columns[kWideColumns / kPiece];
  wait_for_kernel_before();
  const ProductTile tile(args);
  if (tile.columns == 0) return;
  const int thread = threadIdx.x, first_row = thread / 16 * kRows, first_column = thread % 16;
  const T* const a = static_cast<const T*>(args.a.data) + tile.a_base(args);
  const T* const b = static_cast<const T*>(args.b.data) + tile.b_base(args);
  for (int i = thread; i * kPiece < tile.columns; i += kWideThreads) columns[i] = tile.column(args, i);
  T acc[kRows][4] = {};
  for (int64_t k = 0; k < tile.depth; k += kWideDepth) {
    const ProductTile::Depth depth = tile.at_depth(args, k);
    __syncthreads();
    stage_wide<kPiece>(left, args.a, a + depth.a, kPiece, tile.depth - k, [&](int x) { return x * args.a.x_stride; });
    stage_wide<kWideColumns>(right, args.b, b + depth.b, tile.columns, tile.depth - k,
                             [&](int x) { return columns[x / kPiece].b + x % kPiece * args.b.x_stride; });
    __syncthreads();
#pragma unroll
    for (int d = 0; d < kWideDepth; ++d) {
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) acc[i][j] += left[d][first_row + i] * right[d][first_column + j * 16];
      }
    }
  }
  __syncthreads();
  const int64_t out_stride = tile.out_stride(args);
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int x = first_column + j * 16;
      if (x >= tile.columns) continue;
      static_cast<T*>(args.out)[columns[x / kPiece].out + (first_row + i) * out_stride + x % kPiece] = acc[i][j];
    }
  }
}

template <class T>
void launch_wide_product(BlockProductArgs& args, const Stream& where) {
  const bool coarse = args.layout.block % 64 == 0;
  cut_into_tiles(args, coarse ? 64 : 16, kWideColumns);
  launch_after(coarse ? block_product_wide<T, 64> : block_product_wide<T, 16>, args.tiles(), 1, kWideThreads,
               static_cast<cudaStream_t>(where.stream), args);
}

}  // namespace

void block_product_fp32(BlockProductArgs args, const Stream& where) { launch_wide_product<float>(args, where); }
void block_product_fp64(BlockProductArgs args, const Stream& where) { launch_wide_product<double>(args, where); }

}  // namespace xformers::cuda
