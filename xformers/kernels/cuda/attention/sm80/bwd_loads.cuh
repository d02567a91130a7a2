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

// The tiles that add to the blocks of dq_sum from `block` on.
template <int kBlocks>
__device__ __forceinline__ void load_block_tiles(Range (&to)[kBlocks], const BwdArgs& args, int64_t block) {
  const int word = threadIdx.x;
  if (word < 2 * kBlocks) {
    const bool valid = block + word / 2 < args.query_blocks;
    const int* const from = reinterpret_cast<const int*>(args.block_tiles);
    copy_async_4(shared_address(to) + 4 * word, valid ? from + 2 * block + word : from, valid);
  }
}

// Where a tile spans sequences, what is masked is 0 times a number of another sequence: it must be finite. What is not
// becomes 0, or the largest number for an infinite one, and its row is told: told(row). By all threads.
template <class T, int kDim, int kThreads, int kBytes, class Told>
__device__ __forceinline__ void make_finite(unsigned char (&tile)[kBytes], const Told& told) {
  constexpr uint32_t kInf = std::is_same_v<T, __half> ? 0x7c00 : 0x7f80;
  const auto finite = [](uint32_t bits) {
    return (bits & 0x7fff) > kInf ? 0u : (bits & 0x7fff) == kInf ? bits - 1 : bits;
  };
  const uint32_t begin = shared_address(tile);
#pragma unroll 4
  for (int i = threadIdx.x; i < kBytes / 16; i += kThreads) {
    const uint4 four = load_shared_16(begin + i * 16);
    uint32_t words[4] = {four.x, four.y, four.z, four.w}, carries = 0;
#pragma unroll
    for (const uint32_t word : words) carries |= (word & 0x7fff7fffu) + (0x8000u - kInf) * 0x10001u;
    if ((carries & 0x80008000u) == 0) continue;
#pragma unroll
    for (uint32_t& word : words) word = finite(word & 0xffff) | finite(word >> 16) << 16;
    store_shared_16(begin + i * 16, {words[0], words[1], words[2], words[3]});
    told(i * 16 / TileLayout<kDim>::kRowBytes);
  }
}

__device__ __forceinline__ int64_t bias_offset(const ScoreBias& bias, const BwdTile& tile, int query, int key) {
  return bias.offset(tile.sequence.index, tile.group, tile.head, query, key);
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
