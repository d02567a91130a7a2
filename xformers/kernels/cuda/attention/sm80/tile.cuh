// A tile of 16-bit elements in shared memory: rows of kDim elements in chunks of 16 bytes. Chunks are permuted within
// groups of eight (four for rows of 64 or 192 bytes), so that the eight rows of a matrix that ldmatrix reads, and the
// rows that a warp writes, fall on different banks.
#pragma once

#include "xformers/kernels/cuda/arch/copy.cuh"

namespace xformers::cuda::sm80 {

template <int kDim>
struct TileLayout {
  static constexpr int kChunks = kDim / kChunk, kRowBytes = 2 * kDim;
  static __device__ __forceinline__ int permuted(int row, int chunk) {
    return chunk ^ (kRowBytes % 128 == 0 ? row & 7 : row >> 1 & 3);
  }
  static __device__ __forceinline__ uint32_t offset(int row, int chunk) {
    return static_cast<uint32_t>(row * kRowBytes + permuted(row, chunk) * 16);
  }
};

// The same for tiles that are also read by rows 8 i + j and 8 i + j + 1, i < 4, j even: these, too, fall on different
// banks.
template <int kDim>
struct SpreadTileLayout : TileLayout<kDim> {
  static_assert(kDim == 32 || kDim == 64);
  static __device__ __forceinline__ uint32_t offset(int row, int chunk) {
    return TileLayout<kDim>::offset(row, chunk ^ (row >> 3 & 3) * (kDim / 32));
  }
};

// Registers of an A operand [16, 16] (rows from `row`, columns from 2 `chunk2` chunks), of two B operands [16, 8] whose
// columns are rows of the tile, and of two B operands whose columns are columns of the tile. `lane`: for a caller that
// reads it anew, lest addresses fill registers across a loop.
template <int kDim, class Layout = TileLayout<kDim>>
__device__ __forceinline__ void load_a(uint32_t (&a)[4], uint32_t tile, int row, int chunk2,
                                       int lane = threadIdx.x % 32) {
  load_matrices(a, tile + Layout::offset(row + (lane & 15), 2 * chunk2 + (lane >> 4)));
}
template <int kDim>
__device__ __forceinline__ void load_b(uint32_t (&b)[4], uint32_t tile, int row, int chunk2,
                                       int lane = threadIdx.x % 32) {
  load_matrices(b, tile + TileLayout<kDim>::offset(row + (lane & 7) + (lane >> 4) * 8, 2 * chunk2 + (lane >> 3 & 1)));
}
template <int kDim>
__device__ __forceinline__ void load_b_transposed(uint32_t (&b)[4], uint32_t tile, int row, int chunk2,
                                                  int lane = threadIdx.x % 32) {
  load_matrices_transposed(b, tile + TileLayout<kDim>::offset(row + (lane & 15), 2 * chunk2 + (lane >> 4)));
}
// An A operand from a tile that holds its transpose: rows of the operand are columns of the tile.
template <int kDim, class Layout = TileLayout<kDim>>
__device__ __forceinline__ void load_a_transposed(uint32_t (&a)[4], uint32_t tile, int row, int chunk2,
                                                  int lane = threadIdx.x % 32) {
  load_matrices_transposed(a, tile + Layout::offset(row + (lane & 7) + (lane >> 4) * 8, 2 * chunk2 + (lane >> 3 & 1)));
}

// Fills a tile: visit(row, chunk, address) for every chunk, spread over the block's threads.
template <int kRows, int kDim, int kThreads, int kUnroll = 16, class Visit>
__device__ __forceinline__ void for_each_chunk(uint32_t tile, const Visit& visit) {
  using Layout = TileLayout<kDim>;
  static_assert(kRows * Layout::kChunks % kThreads == 0);
#pragma unroll kUnroll
  for (int i = 0; i < kRows * Layout::kChunks / kThreads; ++i) {
    const int index = threadIdx.x + i * kThreads;
    const int row = index / Layout::kChunks, chunk = index % Layout::kChunks;
    visit(row, chunk, tile + Layout::offset(row, chunk));
  }
}

// Rows [0, rows) of `stride` elements, 16-byte aligned, into a tile; zeros elsewhere. The pointer moves from row to
// row: products of row and stride would be kept in registers across the kernel's loop.
template <int kRows, int kDim, int kThreads, class T>
__device__ __forceinline__ void load_rows(uint32_t tile, const T* from, int64_t stride, int rows, int dim) {
  using Layout = TileLayout<kDim>;
  constexpr int kAcross = Layout::kChunks & -Layout::kChunks;  // neighbouring threads in a row: a power of two
  constexpr int kStep = kThreads / kAcross;                    // rows at once
  if constexpr (kRows % kStep == 0 && kStep % 8 == 0) {
    const int thread = thread_again(), first_row = thread / kAcross, first_chunk = thread % kAcross;
    const int64_t step = kStep * stride * int64_t{sizeof(T)};
#pragma unroll
    for (int across = 0; across < Layout::kChunks; across += kAcross) {
      const int chunk = first_chunk + across;
      const int left = chunk * kChunk < dim ? rows - first_row : 0;  // compared with constants: it costs one register
      const uint32_t to = tile + Layout::offset(first_row, first_chunk) + across * 16;
      const char* at = reinterpret_cast<const char*>(from + first_row * stride + chunk * kChunk);
#pragma unroll
      for (int row = 0; row < kRows; row += kStep) {
        copy_async_16(to + row * Layout::kRowBytes, at, row < left);  // `at` is not followed elsewhere
        at += step;
      }
    }
  } else {
    for_each_chunk<kRows, kDim, kThreads>(tile, [&](int row, int chunk, uint32_t to) {
      const bool valid = row < rows && chunk * kChunk < dim;
      copy_async_16(to, valid ? from + row * stride + chunk * kChunk : from, valid);
    });
  }
}

}  // namespace xformers::cuda::sm80
