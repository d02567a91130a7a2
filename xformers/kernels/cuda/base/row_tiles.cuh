// Element-by-element kernels over a matrix [rows, width], and the sums of their columns.
//
// A thread keeps its columns (kWidth neighbours, one access) and visits rows. A block is `lanes` threads wide, takes a
// strip of columns and kTileRows rows per thread at a time. Where that is all it does, blocks sweep through memory in
// order. Where a thread has something to keep (a bias, sums), there are fewer blocks, which go on `stride` rows
// further, so that together they sweep like the many. Sums over the rows: in a thread, then over the block's threads of
// one column, then (column_sums) over the blocks of a strip, each in a fixed order.
#pragma once

#include <algorithm>
#include <bit>

#include "xformers/kernels/cuda/base/device.h"
#include "xformers/kernels/cuda/base/vector.cuh"

namespace xformers::cuda {

inline constexpr int kTileThreads = 256;
inline constexpr int kTileRows = 2;   // rows that a thread has in flight, unless told otherwise
inline constexpr int kSumBlocks = 2;  // per multiprocessor, of a kernel with sums: as many as run at a time

struct RowTiles {
  int64_t rows = 0, vectors = 0;  // vectors: accesses per row
  int lanes = 0;                  // threads side by side, a power of two
  int in_flight = 0;              // rows that a thread takes at a time
  unsigned strips = 0;
  int64_t chunks = 0, stride = 0;  // blocks per strip; rows from one turn of a block to its next

  int64_t blocks() const { return strips * chunks; }

  // most: blocks per multiprocessor; 0: as many as there is work for.
  RowTiles(int64_t rows, int64_t width, int elements, int most, int in_flight = kTileRows)
      : rows(rows), vectors(width / elements), in_flight(in_flight) {
    constexpr int64_t kMaxLanes = 128;
    lanes = static_cast<int>(std::bit_ceil(static_cast<uint64_t>(std::min(vectors, kMaxLanes))));
    strips = static_cast<unsigned>((vectors + lanes - 1) / lanes);
    const int64_t turn = int64_t{in_flight} * (kTileThreads / lanes);
    chunks = (rows + turn - 1) / turn;
    if (most > 0) chunks = std::clamp<int64_t>(int64_t{most} * current_device().multiprocessors / strips, 1, chunks);
    stride = chunks * turn;
  }
};

// Where a thread begins, and how it goes on.
struct TileWalk {
  int64_t vector, row, end;  // row >= end: nothing to do
  int step;                  // rows between those that a thread has in flight
  int64_t chunk;

  __device__ __forceinline__ explicit TileWalk(const RowTiles& tiles) {
    const int lane = static_cast<int>(threadIdx.x) % tiles.lanes;
    chunk = blockIdx.x / tiles.strips;
    step = kTileThreads / tiles.lanes;
    vector = int64_t{blockIdx.x % tiles.strips} * tiles.lanes + lane;
    row = chunk * tiles.in_flight * step + static_cast<int>(threadIdx.x) / tiles.lanes;
    end = vector < tiles.vectors ? tiles.rows : 0;
  }
};

// The block's sums of kCount numbers per thread, left with the threads of its first row; all threads call it.
template <int kCount, class C>
__device__ __forceinline__ void sum_over_block(C (&values)[kCount], int lanes) {
  __shared__ C shared[kCount][kTileThreads];
#pragma unroll
  for (int i = 0; i < kCount; ++i) shared[i][threadIdx.x] = values[i];
  for (int half = kTileThreads / 2; half >= lanes; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < half) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) shared[i][threadIdx.x] = values[i] += shared[i][threadIdx.x + half];
    }
  }
}

// A fixed-size part of a row of sums.
template <int kCount, class C>
__device__ __forceinline__ void store_sums(C* to, const C (&values)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) to[i] = values[i];
}

}  // namespace xformers::cuda
