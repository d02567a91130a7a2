// Block-sparse products of 16-bit elements on tensor cores (mma.m16n8k16, sums in fp32).
//
// A block of kWarpsX x kWarpsY warps has a tile of kPiece rows and kColumns columns. Steps of 64 of the depth lie in
// kStages stages of shared memory, asked for ahead (cp.async). An operand whose depth is contiguous lies there as
// [x][64], else as [64][x]; chunks of 16 bytes are placed so that eight rows that are read together never share a bank.
// The result goes through shared memory, so that whole chunks are written.
#pragma once

#include "xformers/kernels/cuda/arch/copy.cuh"
#include "xformers/kernels/cuda/arch/mma.cuh"
#include "xformers/kernels/cuda/base/elements.cuh"
#include "xformers/kernels/cuda/base/launch.h"
#include "xformers/kernels/cuda/blocksparse/product_tile.cuh"

namespace xformers::cuda {

// A tile, its warps along rows and columns, and blocks per multiprocessor.
template <int kPieceOf, int kColumnsOf, int kWarpsYOf, int kWarpsXOf, int kStagesOf, int kBlocksOf>
struct MmaProductPolicy {
  static constexpr int kPiece = kPieceOf, kColumns = kColumnsOf, kWarpsX = kWarpsXOf, kStages = kStagesOf;
  static constexpr int kThreads = kWarpsYOf * kWarpsX * 32, kBlocks = kBlocksOf;
  static constexpr int kRowsOfWarp = kPiece / kWarpsYOf, kColumnsOfWarp = kColumns / kWarpsX;
  static constexpr int kM = kRowsOfWarp / 16, kN = kColumnsOfWarp / 8;  // products of mma, of a warp
  static constexpr int kDepthPiece = kPiece < 64 ? kPiece : 64;
  static constexpr int kABytes = kPiece * 128, kStageBytes = (kPiece + kColumns) * 128, kBytes = kStages * kStageBytes;
  static constexpr int kOutPitch = kColumns + 8;  // elements
  static_assert(kPiece * kOutPitch * 2 <= kBytes);
};

// An operand in shared memory: kX numbers side by side, 64 deep.
template <int kX>
struct StagedSide {
  static constexpr int kChunks = kX / 8 < 8 ? kX / 8 : 8;  // of a [64][x] row that are permuted

  static __device__ __forceinline__ int swap_of(int k) { return k / (8 / kChunks) & (kChunks - 1); }
  static __device__ __forceinline__ uint32_t by_x(int x, int k_chunk) { return x * 128 + ((k_chunk ^ (x & 7)) << 4); }
  static __device__ __forceinline__ uint32_t by_k(int k, int x_chunk) {
    return k * (kX * 2) + ((x_chunk ^ swap_of(k)) << 4);
  }
};

// 16 bytes of which the first `bytes` are there, from any address.
template <class T>
__device__ __forceinline__ void copy_unaligned_part(uint32_t to, const T* from, int bytes) {
  const auto* const halves = reinterpret_cast<const unsigned short*>(from);
#pragma unroll 1
  for (int i = 0; i < 4; ++i) {
    const uint32_t low = 4 * i < bytes ? halves[2 * i] : 0u, high = 4 * i + 2 < bytes ? halves[2 * i + 1] : 0u;
    store_shared_4(to + 4 * i, low | high << 16);
  }
}

__device__ __forceinline__ int bytes_of(int elements) { return min(max(elements, 0), 8) * 2; }

// What one thread copies of each step of an operand: chunks of rows that lie kRows apart. All that stays the same from
// step to step is computed once.
template <class T, int kX, int kThreads, int kDepthPiece, bool kAlongX>
class SideStager {
  static constexpr int kRow = kAlongX ? kX / 8 : 8;  // chunks of a row of shared memory
  static constexpr int kRows = kThreads / kRow, kCopies = kX * 8 / kThreads;
  static_assert(kRows % 8 == 0 && kCopies * kThreads == kX * 8 &&
                (kRows % kDepthPiece == 0 || kDepthPiece % kRows == 0));

  const T* from_[kAlongX ? 1 : kCopies];  // without the offset of the depth
  int64_t k_stride_;
  uint32_t to_;
  int bytes_, first_k_, depth_piece_;
  bool aligned_;

 public:
  // x_offset(x) of the `there` numbers side by side; further ones, which nobody writes, are as the first.
  template <class XOffset>
  __device__ __forceinline__ SideStager(const ProductSide& side, const T* base, int there, const XOffset& x_offset)
      : k_stride_(side.k_stride), aligned_(side.aligned) {
    const int row = threadIdx.x / kRow, chunk = threadIdx.x % kRow;
    if constexpr (kAlongX) {
      to_ = StagedSide<kX>::by_k(row, chunk);
      bytes_ = bytes_of(there - chunk * 8);
      first_k_ = row;
      depth_piece_ = row / kDepthPiece;
      from_[0] = base + x_offset(bytes_ ? chunk * 8 : 0) + row % kDepthPiece * k_stride_;
    } else {
      to_ = StagedSide<kX>::by_x(row, chunk);
      bytes_ = 16;
      first_k_ = chunk * 8;
      depth_piece_ = first_k_ / kDepthPiece;
#pragma unroll
      for (int i = 0; i < kCopies; ++i) {
        const int x = row + i * kRows;
        from_[i] = base + x_offset(x < there ? x : 0) + first_k_ % kDepthPiece;
      }
    }
  }

  // A step of which `left` of the depth are there; depth_at(i): offset of its piece i.
  template <class DepthAt>
  __device__ __forceinline__ void stage(uint32_t stage, int left, const DepthAt& depth_at) const {
    const auto each = [&](const auto& copy) {
      if constexpr (kAlongX) {
#pragma unroll
        for (int i = 0; i < kCopies; ++i) {
          const T* const from = from_[0] + depth_at(depth_piece_ + i * kRows / kDepthPiece);
          copy(stage + to_ + i * (kRows * kX * 2), from + i * kRows % kDepthPiece * k_stride_,
               first_k_ + i * kRows < left ? bytes_ : 0);
        }
      } else {
        const int64_t offset = depth_at(depth_piece_);
        const int bytes = bytes_of(left - first_k_);
#pragma unroll
        for (int i = 0; i < kCopies; ++i) copy(stage + to_ + i * (kRows * 128), from_[i] + offset, bytes);
      }
    };
    if (aligned_) {
      each([](uint32_t to, const T* from, int bytes) { copy_async_part(to, from, bytes); });
    } else {
      each([](uint32_t to, const T* from, int bytes) { copy_unaligned_part(to, from, bytes); });
    }
  }
};

// How a lane reads squares of 16 x 16 of an operand from shared memory: it gives the address of row `along` of the
// square, from chunk `across` on.
template <int kX, bool kAlongX>
class SquareReader {
  uint32_t first_;       // of the lane's row, in bytes
  int chunk_, swapped_;  // its first chunk of 16 bytes; what chunks are permuted by

 public:
  // kAlongX: rows of the square lie along x, at k_row; else along k, at x_row. Parts are the chunks in them.
  __device__ __forceinline__ SquareReader(int first_x, int x_row, int x_part, int k_row, int k_part)
      : first_(kAlongX ? k_row * (kX * 2) : (first_x + x_row) * 128),
        chunk_(kAlongX ? first_x / 8 + x_part : k_part),
        swapped_(kAlongX ? StagedSide<kX>::swap_of(k_row) : x_row & 7) {}

  // Square (x, k) from the first on.
  __device__ __forceinline__ void load(uint32_t (&r)[4], uint32_t stage, int x, int k) const {
    if constexpr (kAlongX) {
      load_matrices_transposed(r, stage + first_ + (((chunk_ + x * 2) ^ swapped_) << 4) + k * (16 * kX * 2));
    } else {
      load_matrices(r, stage + first_ + (((chunk_ + k * 2) ^ swapped_) << 4) + x * (16 * 128));
    }
  }
};

// The sums of all warps, through shared memory: whole chunks of 16 bytes of the `there` columns of a tile.
template <class T, class Policy>
__device__ __forceinline__ void write_product_tile(const BlockProductArgs& args,
                                                   const float (&acc)[Policy::kM][Policy::kN][4], char* smem,
                                                   const ProductTile::Column* columns, int there) {
  constexpr int kPitch = Policy::kOutPitch, kPiece = Policy::kPiece, kChunks = Policy::kColumns / 8;
  const int thread = thread_again(), warp = thread / 32, lane = thread % 32;
  const int first_row = warp / Policy::kWarpsX * Policy::kRowsOfWarp + lane / 4;
  const int first_column = warp % Policy::kWarpsX * Policy::kColumnsOfWarp + lane % 4 * 2;
  const uint32_t first = shared_address(smem) + (first_row * kPitch + first_column) * 2;
#pragma unroll
  for (int i = 0; i < Policy::kM; ++i) {
#pragma unroll
    for (int j = 0; j < Policy::kN; ++j) {
      const uint32_t to = first + (i * 16 * kPitch + j * 8) * 2;
      store_shared_4(to, pack<T>(acc[i][j][0], acc[i][j][1]));
      store_shared_4(to + 8 * kPitch * 2, pack<T>(acc[i][j][2], acc[i][j][3]));
    }
  }
  __syncthreads();
  T* const out = static_cast<T*>(args.out);
  const int64_t out_stride = ProductTile::out_stride(args);
#pragma unroll 4
  for (int chunk = thread; chunk < kPiece * kChunks; chunk += Policy::kThreads) {
    const int row = chunk / kChunks, x = chunk % kChunks * 8;
    if (x >= there) continue;
    T* const to = out + columns[x / kPiece].out + row * out_stride + x % kPiece;
    const T* const from = reinterpret_cast<const T*>(smem) + row * kPitch + x;
    if (args.out_vectors) {
      *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
    } else {
      for (int i = 0; i < 8 && x + i < there; ++i) to[i] = from[i];
    }
  }
}

template <class T, class Policy, bool kAAlongX, bool kBAlongX>
__global__ void __launch_bounds__(Policy::kThreads, Policy::kBlocks)
    block_product_mma(const __grid_constant__ BlockProductArgs args) {
  constexpr int kPiece = Policy::kPiece, kColumns = Policy::kColumns, kThreads = Policy::kThreads, kDepth = 64;
  constexpr int kDepthPiece = Policy::kDepthPiece, kDepthPieces = kDepth / kDepthPiece, kStages = Policy::kStages;
  constexpr int kM = Policy::kM, kN = Policy::kN;
  extern __shared__ __align__(128) char smem[];
  __shared__ ProductTile::Column columns[kColumns / kPiece];
  __shared__ ProductTile::Depth depths[2][kDepthPieces];
  wait_for_kernel_before();

  const ProductTile tile(args);
  if (tile.columns == 0) return;
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const int first_row = warp / Policy::kWarpsX * Policy::kRowsOfWarp;
  const int first_column = warp % Policy::kWarpsX * Policy::kColumnsOfWarp;
  const int steps = static_cast<int>((tile.depth + kDepth - 1) / kDepth);
  const T* const a = static_cast<const T*>(args.a.data) + tile.a_base(args);
  const T* const b = static_cast<const T*>(args.b.data) + tile.b_base(args);
  const uint32_t stages = shared_address(smem);

  const auto depth_of = [&](int step) {
    const int64_t k = int64_t{step} * kDepth + thread * kDepthPiece;
    return k < tile.depth ? tile.at_depth(args, k) : ProductTile::Depth{0, 0};
  };
  for (int i = thread; i * kPiece < tile.columns; i += kThreads) columns[i] = tile.column(args, i);
  __syncthreads();
  const SideStager<T, kPiece, kThreads, kDepthPiece, kAAlongX> a_stager(args.a, a, kPiece,
                                                                        [&](int x) { return x * args.a.x_stride; });
  const SideStager<T, kColumns, kThreads, kDepthPiece, kBAlongX> b_stager(
      args.b, b, tile.columns, [&](int x) { return columns[x / kPiece].b + x % kPiece * args.b.x_stride; });
  const auto stage_step = [&](int step) {
    const uint32_t to = stages + step % kStages * Policy::kStageBytes;
    const int64_t rest = tile.depth - int64_t{step} * kDepth;
    const int left = rest < kDepth ? static_cast<int>(rest) : kDepth;
    const ProductTile::Depth* const depth = depths[step % 2];
    a_stager.stage(to, left, [&](int i) { return depth[i].a; });
    b_stager.stage(to + Policy::kABytes, left, [&](int i) { return depth[i].b; });
  };

  for (int step = 0; step < kStages - 1; ++step) {
    if (thread < kDepthPieces) depths[step % 2][thread] = depth_of(step);
    __syncthreads();
    if (step < steps) stage_step(step);
    copy_async_commit();
  }
  if (thread < kDepthPieces) depths[(kStages - 1) % 2][thread] = depth_of(kStages - 1);

  // Matrices 0 ... 3 of a square, as mma takes them: of a (x, k) = (0, 0), (8, 0), (0, 8), (8, 8); of b (0, 0), (0, 8),
  // (8, 0), (8, 8).
  const int row = lane % 8, second = lane / 8 % 2, last_two = lane / 16;
  const SquareReader<kPiece, kAAlongX> read_a(first_row, second * 8 + row, second, last_two * 8 + row, last_two);
  const SquareReader<kColumns, kBAlongX> read_b(first_column, last_two * 8 + row, last_two, second * 8 + row, second);
  float acc[kM][kN][4] = {};
  for (int step = 0; step < steps; ++step) {
    copy_async_wait<kStages - 2>();
    __syncthreads();
    if (step + kStages - 1 < steps) stage_step(step + kStages - 1);
    copy_async_commit();
    ProductTile::Depth later{0, 0};  // on its way during the products
    if (thread < kDepthPieces) later = depth_of(step + kStages);
    const uint32_t left = stages + step % kStages * Policy::kStageBytes, right = left + Policy::kABytes;
    if (first_column < tile.columns) {
#pragma unroll
      for (int k = 0; k < kDepth / 16; ++k) {
        uint32_t x[kM][4], y[kN / 2][4];
#pragma unroll
        for (int i = 0; i < kM; ++i) read_a.load(x[i], left, i, k);
#pragma unroll
        for (int j = 0; j < kN / 2; ++j) read_b.load(y[j], right, j, k);
#pragma unroll
        for (int i = 0; i < kM; ++i) {
#pragma unroll
          for (int j = 0; j < kN; ++j) mma<T>(acc[i][j], x[i], y[j / 2][j % 2 * 2], y[j / 2][j % 2 * 2 + 1]);
        }
      }
    }
    if (thread < kDepthPieces) depths[(step + kStages) % 2][thread] = later;
  }

  copy_async_wait<0>();
  __syncthreads();
  write_product_tile<T, Policy>(args, acc, smem, columns, tile.columns);
}

template <class T, class Policy, bool kAAlongX, bool kBAlongX>
void launch_mma_product(BlockProductArgs& args, const Stream& where) {
  cut_into_tiles(args, Policy::kPiece, Policy::kColumns);
  launch_after(block_product_mma<T, Policy, kAAlongX, kBAlongX>, args.tiles(), 1, Policy::kThreads,
               static_cast<cudaStream_t>(where.stream), args, Policy::kBytes);
}

// By measurement: docs/design/cuda-sparse.md, which also says what would be faster for blocks of 16.
template <class T, bool kAAlongX, bool kBAlongX>
void block_product_of(BlockProductArgs& args, const Stream& where) {
  const auto launch = [&]<class Policy>(Policy) { launch_mma_product<T, Policy, kAAlongX, kBAlongX>(args, where); };
  const int64_t block = args.layout.block;
  if (block % 128 == 0) return launch(MmaProductPolicy<128, 128, 2, 4, 3, 2>{});
  if (block % 64 == 0) {
    if constexpr (kBAlongX) {  // rows of sdd are shorter, and fill narrow tiles
      if (!args.sdd) return launch(MmaProductPolicy<64, 256, 2, 4, 2, 2>{});
    }
    return launch(MmaProductPolicy<64, 128, 2, 2, 4, 2>{});
  }
  if (block % 32 == 0) return launch(MmaProductPolicy<32, 128, 1, 4, 3, 3>{});
  launch(MmaProductPolicy<16, 128, 1, 4, 3, 4>{});
}

template <class T>
void block_product(BlockProductArgs& args, const Stream& where) {
  const auto with_b = [&]<bool kAAlongX>() {
    args.b.x_contiguous ? block_product_of<T, kAAlongX, true>(args, where)
                        : block_product_of<T, kAAlongX, false>(args, where);
  };
  args.a.x_contiguous ? with_b.template operator()<true>() : with_b.template operator()<false>();
}

}  // namespace xformers::cuda
