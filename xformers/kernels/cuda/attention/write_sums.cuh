// Accumulators to rows of global memory, without a way through shared memory: four lanes that have a row's columns two
// by two swap them, so that each writes 16 bytes.
#pragma once

#include "xformers/kernels/cuda/arch/copy.cuh"
#include "xformers/kernels/cuda/arch/mma.cuh"
#include "xformers/kernels/cuda/attention/fragment.cuh"

namespace xformers::cuda {

// Four words of each of the four lanes of a quad, transposed: lane c gets word c of all lanes, in their order.
__device__ __forceinline__ void transpose_quad(uint32_t (&words)[4], int lane) {
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const uint32_t got = __shfl_xor_sync(kAllLanes, lane & 1 ? words[i] : words[i + 1], 1);
    words[i] = lane & 1 ? got : words[i];
    words[i + 1] = lane & 1 ? words[i + 1] : got;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t got = __shfl_xor_sync(kAllLanes, lane & 2 ? words[i] : words[i + 2], 2);
    words[i] = lane & 2 ? got : words[i];
    words[i + 2] = lane & 2 ? words[i + 2] : got;
  }
}

// factor * acc, rows of `dim` numbers in chunks of kChunk; those of accumulators [rows, dims] begin at (row, chunk).
// The lanes of a quad, which have two columns each of a row, exchange them: each stores eight of one tile. aligned: in
// units of 16 bytes.
template <class T, int kRowTiles, int kDimTiles>
__device__ __forceinline__ void write_sums(T* to, int64_t stride, int rows, int64_t dim, bool aligned,
                                           const Fragment<kRowTiles, kDimTiles>& acc, int row, int chunk,
                                           float factor) {
  constexpr int kTiles = kRowTiles * kDimTiles;
  const int lane = thread_again() % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int first = 0; first < kTiles; first += 4) {
      uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int tile = first + i < kTiles ? first + i : 0;
        const float(&four)[4] = acc[tile / kDimTiles][tile % kDimTiles];
        words[i] = pack<T>(four[half * 2] * factor, four[half * 2 + 1] * factor);
      }
      transpose_quad(words, lane);
      const int mine = first + lane % 4;
      const int at_row = row + mine / kDimTiles * 16 + half * 8 + lane / 4, at_chunk = chunk + mine % kDimTiles;
      if (at_row >= rows || at_chunk * kChunk >= dim || mine >= kTiles) continue;
      T* const at = to + at_row * stride + at_chunk * kChunk;
      if (aligned) {
        *reinterpret_cast<uint4*>(at) = {words[0], words[1], words[2], words[3]};
      } else {
#pragma unroll
        for (int i = 0; i < kChunk; ++i) {
          const auto bits = static_cast<uint16_t>(words[i / 2] >> (i % 2 * 16));
          if (at_chunk * kChunk + i < dim) reinterpret_cast<uint16_t*>(at)[i] = bits;
        }
      }
    }
}

}  // namespace xformers::cuda
