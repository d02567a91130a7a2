// A tile of fp32 elements in shared memory: rows of kDim elements in chunks of 16 bytes, permuted within groups of
// eight, so that the same chunk of eight rows (ldmatrix) falls on different banks.
#pragma once

#include "xformers/kernels/cuda/arch/copy.cuh"

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

// Two numbers to add to those there.
__device__ __forceinline__ void add_2(float* row, int at, int dim, bool aligned, float2 x) {
  if (aligned) {
    if (at < dim) add_global_2(row + at, x.x, x.y);
    return;
  }
  if (at < dim) atomicAdd(row + at, x.x);
  if (at + 1 < dim) atomicAdd(row + at + 1, x.y);
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
