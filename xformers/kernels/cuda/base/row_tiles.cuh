// Element-by-element kernels over a matrix [rows, width], and the sums of their columns.
//
// A thread keeps its columns (kWidth neighbours, one access) and visits rows. A block is `lanes` threads wide, takes a
// strip of columns and `in_flight` rows per thread at a time. Where that is all it does, blocks sweep through memory in
// order. Where a thread has sums to keep, there are fewer blocks, which go on `stride` rows further, so that together
// they sweep like the many. Sums over the rows: in a thread, then over the block's threads of one column, then
// (column_sums) over the blocks of a strip, each in a fixed order.
//
// Threads live for a few accesses: divisions of 32 bits, and pointers that step, are worth their trouble.
#pragma once

#include <algorithm>
#include <bit>

#include "xformers/kernels/base/divide.h"
#include "xformers/kernels/cuda/base/device.h"
#include "xformers/kernels/cuda/base/launch.h"
#include "xformers/kernels/cuda/base/stream.h"
#include "xformers/kernels/cuda/base/vector.cuh"

namespace xformers::cuda {

inline constexpr int kTileThreads = 256;
inline constexpr int kTileRows = 2;   // rows that a thread has in flight, unless told otherwise
inline constexpr int kSumBlocks = 2;  // per multiprocessor, of a kernel with sums: as many as run at a time

struct RowTiles {
  int64_t rows = 0, vectors = 0;  // vectors: accesses per row
  int log2_lanes = 0;             // of the number of threads side by side
  int in_flight = 0;              // rows that a thread takes at a time
  Divisor<uint32_t> strips;
  int64_t chunks = 0, stride = 0;  // blocks per strip; rows from one turn of a block to its next

  int64_t blocks() const { return strips.size() * chunks; }
  __host__ __device__ int lanes() const { return 1 << log2_lanes; }

  // most: blocks per multiprocessor; 0: as many as there is work for.
  RowTiles(int64_t rows, int64_t width, int elements, int most, int in_flight = kTileRows)
      : rows(rows), vectors(width / elements), in_flight(in_flight) {
    constexpr int64_t kMaxLanes = 128;
    log2_lanes = std::bit_width(static_cast<uint64_t>(std::min(vectors, kMaxLanes) - 1));
    const int64_t count = (vectors + lanes() - 1) / lanes();
    strips = Divisor<uint32_t>(count);
    const int64_t turn = int64_t{in_flight} * (kTileThreads / lanes());
    chunks = (rows + turn - 1) / turn;
    if (most > 0) chunks = std::clamp<int64_t>(int64_t{most} * current_device().multiprocessors / count, 1, chunks);
    stride = chunks * turn;
  }
};

template <class Args>
void launch_rows(void (*kernel)(Args), const RowTiles& tiles, const Args& args, const Stream& where) {
  launch_after(kernel, tiles.blocks(), 1, kTileThreads, static_cast<cudaStream_t>(where.stream), args);
}

// Where a thread begins, and how it goes on.
struct TileWalk {
  int64_t vector, row, end;  // row >= end: nothing to do
  int step, log2_step;       // rows between those that a thread has in flight
  int in_flight;
  int64_t chunk;

  __device__ __forceinline__ explicit TileWalk(const RowTiles& tiles) {
    const auto [quotient, strip] = tiles.strips.divide(blockIdx.x);
    chunk = quotient;
    log2_step = std::bit_width(unsigned{kTileThreads}) - 1 - tiles.log2_lanes;
    step = 1 << log2_step;
    in_flight = tiles.in_flight;
    vector = (int64_t{strip} << tiles.log2_lanes) + static_cast<int>(threadIdx.x & (tiles.lanes() - 1));
    row = (chunk << log2_step) * tiles.in_flight + static_cast<int>(threadIdx.x >> tiles.log2_lanes);
    end = vector < tiles.vectors ? tiles.rows : 0;
  }

  // Of `in_flight` rows from `from` on, every `step`-th, how many there are.
  __device__ __forceinline__ int count(int64_t from) const {
    const int64_t left = end - from;
    const int turn = in_flight << log2_step;
    return left >= turn ? in_flight : left <= 0 ? 0 : (static_cast<int>(left) + step - 1) >> log2_step;
  }
};

// A thread's columns in those rows of a matrix: [i] is the i-th.
template <class T>
struct TileColumn {
  T* first;
  int64_t step;

  template <class Matrix>
  __device__ __forceinline__ TileColumn(const Matrix& matrix, const TileWalk& walk, int64_t from, int64_t column)
      : first(static_cast<T*>(matrix.data) + from * matrix.stride + column), step(walk.step * matrix.stride) {}
  __device__ __forceinline__ T* operator[](int i) const { return first + i * step; }
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

}  // namespace xformers::cuda
