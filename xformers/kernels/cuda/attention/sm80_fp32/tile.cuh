// A tile of fp32 elements in shared memory: rows of kDim elements in chunks of 16 bytes, permuted within groups of
// eight, so that eight rows of one chunk (ldmatrix), and two chunks of rows 0, 2, 4, 6 or 1, 3, 5, 7 (operands whose
// rows are summed over), fall on different banks.
#pragma once

#include "xformers/kernels/cuda/arch/copy.cuh"
#include "xformers/kernels/cuda/arch/mma_tf32.cuh"

namespace xformers::cuda::sm80_fp32 {

inline constexpr int kChunk = 4;  // elements of 16 bytes

template <int kDim>
struct TileLayout {
  static_assert(kDim % 32 == 0);
  static constexpr int kChunks = kDim / kChunk, kRowBytes = 4 * kDim;
  static __device__ __forceinline__ uint32_t offset(int row, int chunk) {
    return static_cast<uint32_t>(row * kRowBytes + (chunk ^ (row & 7)) * 16);
  }
};

// Operands are addressed by a lane's part, which a loop computes once, and constants.
template <int kDim>
__device__ __forceinline__ uint32_t lane_a(uint32_t tile) {
  const int lane = threadIdx.x % 32;
  return tile + TileLayout<kDim>::offset(lane & 15, lane >> 4);
}
template <int kDim>
__device__ __forceinline__ uint32_t lane_b(uint32_t tile) {
  const int lane = threadIdx.x % 32;
  return tile + TileLayout<kDim>::offset(lane & 7, lane >> 3);
}
// `row` (a multiple of 8) rows and `chunk` chunks on.
template <int kDim>
__device__ __forceinline__ uint32_t advance(uint32_t lane, int row, int chunk) {
  return (lane ^ (chunk % 8 * 16)) + row * TileLayout<kDim>::kRowBytes + chunk / 8 * 128;
}

// A operand [16, 8]: rows from `row`, columns from `column8` * 8, of the tile of lane_a. (An 8x8 matrix of 16-bit
// elements has the bytes of 8 rows of 4 numbers, and arrives as TF32 operands want it.)
template <int kDim>
__device__ __forceinline__ SplitTf32<4> load_a(uint32_t lane, int row, int column8) {
  uint32_t x[4];
  load_matrices(x, advance<kDim>(lane, row, 2 * column8));
  SplitTf32<4> a;
  a.set(x);
  return a;
}

// Two B operands [8, 8] whose columns are rows of the tile of lane_b from `row`, and whose rows are its columns from
// `column16` * 16: registers 0 and 1, 2 and 3.
template <int kDim>
__device__ __forceinline__ SplitTf32<4> load_b(uint32_t lane, int row, int column16) {
  uint32_t x[4];
  load_matrices(x, advance<kDim>(lane, row, 4 * column16));
  SplitTf32<4> b;
  b.cut(x);
  return b;
}

// B operands whose rows are rows of the tile. One 16-byte load serves four operands of eight columns; so columns and
// rows are taken in another order, which the A operand and the accumulators share:
//   rows     of eight, row t is 2 t and row t + 4 is 2 t + 1: the order in which a lane holds its accumulators;
//   columns  of 32, column n of operand j is 4 chunk_of(n) + j.
__device__ __forceinline__ int chunk_of(int n) { return n >> 1 ^ (n & 1 ? 5 : 0); }

// The four operands of rows from `row` (a multiple of 8) and columns from `column32` * 32: registers 2 j, 2 j + 1.
template <int kDim>
__device__ __forceinline__ uint32_t lane_b_rows(uint32_t tile) {
  const int lane = threadIdx.x % 32;
  return tile + TileLayout<kDim>::offset(lane % 4 * 2, chunk_of(lane / 4));
}
template <int kDim>
__device__ __forceinline__ SplitTf32<8> load_b_rows(uint32_t lane, int row, int column32) {
  using Layout = TileLayout<kDim>;
  SplitTf32<8> b;
#pragma unroll
  for (int odd = 0; odd < 2; ++odd) {  // the next row's chunk is the other one of two
    const uint4 x = load_shared_16((lane ^ odd * 16) + (row + odd) * Layout::kRowBytes + column32 * 128);
    b.set(odd, __uint_as_float(x.x));
    b.set(2 + odd, __uint_as_float(x.y));
    b.set(4 + odd, __uint_as_float(x.z));
    b.set(6 + odd, __uint_as_float(x.w));
  }
  return b;
}

// Accumulators [16, 8] as an A operand, columns in the order of load_b_rows.
__device__ __forceinline__ SplitTf32<4> to_a(const float (&x)[4]) {
  SplitTf32<4> a;
  a.set(0, x[0]), a.set(1, x[2]), a.set(2, x[1]), a.set(3, x[3]);
  return a;
}

// Sums [16, 32] of products with operands of load_b_rows: element i of sum j is in row lane / 4 + i / 2 * 8 and column
// 4 chunk_of(lane % 4 * 2 + i % 2) + j. At most kSumSteps operands are added before add_to.
inline constexpr int kSumSteps = 4;
struct Sums {
  float of[4][4] = {};

  __device__ __forceinline__ void add(const SplitTf32<4>& a, const SplitTf32<8>& b) {
#pragma unroll
    for (int j = 0; j < 4; ++j) mma_tf32(of[j], a.small, b.big[2 * j], b.big[2 * j + 1]);
#pragma unroll
    for (int j = 0; j < 4; ++j) mma_tf32(of[j], a.big, b.small[2 * j], b.small[2 * j + 1]);
#pragma unroll
    for (int j = 0; j < 4; ++j) mma_tf32(of[j], a.big, b.big[2 * j], b.big[2 * j + 1]);
  }
  __device__ __forceinline__ void add_to(float (&acc)[4][4]) const {
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) acc[j][i] += of[j][i];
  }
};
__device__ __forceinline__ int sum_column(int i) { return kChunk * chunk_of(threadIdx.x % 4 * 2 + i % 2); }

// Four neighbouring numbers, those of them that are inside [0, dim); one store where rows are aligned.
__device__ __forceinline__ void store_4(float* row, int at, int dim, bool aligned, float4 x) {
  if (aligned) {
    if (at < dim) *reinterpret_cast<float4*>(row + at) = x;
    return;
  }
  if (at < dim) row[at] = x.x;
  if (at + 1 < dim) row[at + 1] = x.y;
  if (at + 2 < dim) row[at + 2] = x.z;
  if (at + 3 < dim) row[at + 3] = x.w;
}

// The same as a sum in global memory.
__device__ __forceinline__ void add_4(float* row, int at, int dim, bool aligned, float4 x) {
  if (aligned) {
    if (at < dim) add_global_4(row + at, x.x, x.y, x.z, x.w);
    return;
  }
  if (at < dim) atomicAdd(row + at, x.x);
  if (at + 1 < dim) atomicAdd(row + at + 1, x.y);
  if (at + 2 < dim) atomicAdd(row + at + 2, x.z);
  if (at + 3 < dim) atomicAdd(row + at + 3, x.w);
}

// Fills a tile: rows [0, rows) from from_row(row), zeros elsewhere. Rows that are not in units of 16 bytes are copied
// by elements.
template <int kRows, int kDim, int kThreads, class FromRow>
__device__ __forceinline__ void load_tile(uint32_t tile, int rows, int dim, bool aligned, const float* any,
                                          const FromRow& from_row) {
  using Layout = TileLayout<kDim>;
  constexpr int kStep = kThreads / Layout::kChunks;
  static_assert(kThreads % Layout::kChunks == 0 && kRows % kStep == 0);
  const int chunk = threadIdx.x % Layout::kChunks, first_row = threadIdx.x / Layout::kChunks;
#pragma unroll 2
  for (int row = first_row; row < kRows; row += kStep) {
    const bool valid = row < rows && chunk * kChunk < dim;
    const float* from = valid ? from_row(row) + chunk * kChunk : any;
    const uint32_t to = tile + Layout::offset(row, chunk);
    if (aligned) {
      copy_async_16(to, from, valid);
    } else {
#pragma unroll 1
      for (int i = 0; i < kChunk; ++i) {
        const bool inside = valid && chunk * kChunk + i < dim;
        copy_async_4(to + 4 * i, inside ? from + i : any, inside);
      }
    }
  }
}

// Rows of one stride from `part`, this thread's part of the first of them (thread_part). cp.async reads nothing where
// invalid, wherever the pointer leads.
template <int kDim, int kThreads>
__device__ __forceinline__ const float* thread_part(const float* first, int64_t stride) {
  constexpr int kChunks = TileLayout<kDim>::kChunks;
  return first + threadIdx.x / kChunks * stride + threadIdx.x % kChunks * kChunk;
}
template <int kRows, int kDim, int kThreads>
__device__ __forceinline__ void load_rows(uint32_t tile, const float* part, int64_t stride, int rows, int dim,
                                          bool aligned) {
  using Layout = TileLayout<kDim>;
  constexpr int kStep = kThreads / Layout::kChunks;
  const int chunk = threadIdx.x % Layout::kChunks, first_row = threadIdx.x / Layout::kChunks;
  if (!aligned) {
    const float* first = part - (first_row * stride + chunk * kChunk);
    return load_tile<kRows, kDim, kThreads>(tile, rows, dim, false, first,
                                            [&](int row) { return first + row * stride; });
  }
  const bool in_dim = chunk * kChunk < dim;
#pragma unroll
  for (int i = 0; i < kRows / kStep; ++i) {
    const int row = first_row + i * kStep;
    copy_async_16(tile + Layout::offset(row, chunk), part, in_dim && row < rows);
    part += kStep * stride;
  }
}

}  // namespace xformers::cuda::sm80_fp32
