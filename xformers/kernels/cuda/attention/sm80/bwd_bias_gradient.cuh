// The gradient of the bias: dS, out of the tile in shared memory that dq is computed from.
#pragma once

#include "xformers/kernels/cuda/attention/ds_range.cuh"
#include "xformers/kernels/cuda/attention/sm80/bwd_loads.cuh"
#include "xformers/kernels/cuda/attention/sm80/bwd_products.cuh"

namespace xformers::cuda::sm80 {

// A lane's pieces of eight, 32 keys apart, to sums in fp32 that other sequences or heads add to, too.
template <class T, int kPieces>
__device__ __forceinline__ void add_dbias(const BwdArgs& args, float* to, int keys,
                                          const uint32_t (&pieces)[kPieces][4], float factor) {
#pragma unroll
  for (int n = 0; n < kPieces; ++n, to += 32, keys -= 32) {
    float x[8];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 pair = unpack<T>(pieces[n][i]);
      x[2 * i] = pair.x * factor, x[2 * i + 1] = pair.y * factor;
    }
    if (args.aligned_dbias && keys >= 8) {
      add_global_4(to, x[0], x[1], x[2], x[3]), add_global_4(to + 4, x[4], x[5], x[6], x[7]);
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i)
        if (i < keys) atomicAdd(to + i, x[i]);
    }
  }
}

// dS^T * factor [block_n, block_m] -> rows of queries. A warp has eight queries and takes 32 keys at once: matrix j
// of ldmatrix has the keys 8 i + 2 j, + 1, i < 4, as its rows, so that lane 4 r + c gets eight neighbours, 8 c ... 8 c
// + 7, of query r. Nothing of it is read again soon (st.cs).
template <class T, BwdPolicy kPolicy>
__device__ __forceinline__ void store_dbias(const BwdArgs& args, const BwdTile& tile, int first_query, uint32_t ds,
                                            float factor) {
  static_assert(kPolicy.block_m == 8 * kPolicy.warps);
  constexpr int kPieces = kPolicy.block_n() / 32;
  const int thread = thread_again(), warp = thread / 32, lane = thread % 32;
  uint32_t pieces[kPieces][4];
#pragma unroll
  for (int n = 0; n < kPieces; ++n) {
    const int key = n * 32 + lane % 8 / 2 * 8 + lane / 8 * 2 + lane % 2;
    load_matrices_transposed(pieces[n], ds + ScoreLayout<kPolicy>::offset(key, warp));
    if (kMayOverflow<T> && factor != 1 && !args.p.dbias_shared) {
#pragma unroll
      for (uint32_t& pair : pieces[n]) pair = scale_pair(pair, 1 / factor);
    }
  }
  const int query = first_query + warp * 8 + lane / 4, first_key = lane % 4 * 8;
  if (query >= tile.sequence.seqlen_q) return;
  if (args.p.dbias_shared) {
    return add_dbias<T>(
        args,
        static_cast<float*>(args.p.dbias.data) + bias_offset(args.p.dbias, tile, query, tile.first_key + first_key),
        tile.keys - first_key, pieces, 1 / factor);
  }
  T* const to = static_cast<T*>(args.p.dbias.data) + bias_offset(args.p.dbias, tile, query, tile.first_key + first_key);
#pragma unroll
  for (int n = 0; n < kPieces; ++n) {
    const int keys = tile.keys - first_key - n * 32;
    const uint32_t(&piece)[4] = pieces[n];
    if (args.aligned_dbias && keys >= 8) {
      __stcs(reinterpret_cast<uint4*>(to + n * 32), uint4{piece[0], piece[1], piece[2], piece[3]});
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const uint32_t word = piece[i / 2] >> (i % 2 * 16);
        if (i < keys) reinterpret_cast<uint16_t*>(to + n * 32)[i] = static_cast<uint16_t>(word);
      }
    }
  }
}

}  // namespace xformers::cuda::sm80
