// What the backward reads from global memory, into shared memory and asynchronously.
#pragma once

#include "xformers/kernels/cuda/attention/quantised_rows.cuh"
#include "xformers/kernels/cuda/attention/sm80/bwd_tile.cuh"

namespace xformers::cuda::sm80 {

// Rows [0, rows) of q, k, v or dout, zeros up to kRows and kDim.
template <int kRows, class T, BwdPolicy kPolicy>
__device__ __forceinline__ void load_heads(uint32_t to, const BwdArgs& args, const T* from, int64_t stride, int rows,
                                           int64_t dim) {
  const int dims = static_cast<int>(dim);
  if (kPolicy.features != Features::kGeneral || args.aligned) {
    load_rows<kRows, kPolicy.head_dim, kPolicy.threads()>(to, from, stride, rows, dims);
  } else {
    for_each_chunk<kRows, kPolicy.head_dim, kPolicy.threads(), 2>(to, [&](int row, int chunk, uint32_t to) {
      const bool valid = row < rows && chunk * kChunk < dims;
      store_shared_16(to, valid ? load_chunk(from + row * stride + chunk * kChunk, dims - chunk * kChunk, false)
                                : uint4{0, 0, 0, 0});
    });
  }
}

// Statistics of a block of queries, [lse, delta][block_m].
template <BwdPolicy kPolicy>
__device__ __forceinline__ void load_statistics(uint32_t to, const BwdArgs& args, int64_t first_row, int rows) {
  const int row = threadIdx.x % kPolicy.block_m, which = threadIdx.x / kPolicy.block_m;
  if (which < 2) {
    const float* from = static_cast<const float*>(which ? args.delta : args.lse);
    const bool valid = row < rows;
    copy_async_4(to + 4 * (which * kPolicy.block_m + row), valid ? from + first_row + row : from, valid);
  }
}

__device__ __forceinline__ int64_t bias_offset(const ScoreBias& bias, const BwdTile& tile, int query, int key) {
  return tile.sequence.batch * bias.batch_stride + tile.group * bias.group_stride + tile.head * bias.head_stride +
         query * bias.q_stride + key * bias.k_stride;
}

// Bias of queries from `query` and the tile's keys, [block_m][block_n].
template <class T, BwdPolicy kPolicy>
__device__ __forceinline__ void load_bias(uint32_t to, const ScoreBias& bias, const BwdTile& tile, int query) {
  using Layout = TileLayout<kPolicy.block_n()>;
  constexpr int kStep = kPolicy.threads() / Layout::kChunks;  // rows at once
  static_assert(kPolicy.block_m % kStep == 0 && kStep % 8 == 0);
  const int thread = thread_again(), row = thread / Layout::kChunks, chunk = thread % Layout::kChunks;
  const int keys = min(max(tile.keys - chunk * kChunk, 0), kChunk);
  const int left = keys > 0 ? tile.sequence.seqlen_q - query - row : 0;
  const T* const begin = static_cast<const T*>(bias.data);
  const T* at = begin + bias_offset(bias, tile, query + row, tile.first_key + chunk * kChunk);
  to += Layout::offset(row, chunk);
#pragma unroll
  for (int i = 0; i < kPolicy.block_m; i += kStep) {
    const bool valid = i < left;
    copy_async_part(to + i * Layout::kRowBytes, valid ? at : begin, valid ? keys * static_cast<int>(sizeof(T)) : 0);
    at += kStep * bias.q_stride;
  }
}

}  // namespace xformers::cuda::sm80
