// The gradient of the bias: dS, out of the tile in shared memory that dq is computed from.
#pragma once

#include "xformers/kernels/cuda/arch/mma.cuh"
#include "xformers/kernels/cuda/attention/bwd_args.h"
#include "xformers/kernels/cuda/attention/ds_range.cuh"

namespace xformers::cuda {

// Eight neighbouring keys of a query, of which there are `keys`; to sums in fp32 that other sequences or heads add to,
// too, or one by one.
template <class T>
__device__ __forceinline__ void add_dbias(float* to, int keys, bool aligned, const uint32_t (&piece)[4], float factor) {
  float x[8];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = unpack<T>(piece[i]);
    x[2 * i] = pair.x * factor, x[2 * i + 1] = pair.y * factor;
  }
  if (aligned && keys >= 8) {
    add_global_4(to, x[0], x[1], x[2], x[3]), add_global_4(to + 4, x[4], x[5], x[6], x[7]);
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if (i < keys) atomicAdd(to + i, x[i]);
  }
}
__device__ __forceinline__ void store_dbias_elements(uint16_t* to, int keys, const uint32_t (&piece)[4]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (i < keys) to[i] = static_cast<uint16_t>(piece[i / 2] >> (i % 2 * 16));
  }
}

// dS^T * factor [kKeys, queries] -> rows of queries, of which a warp has eight, `first_query` ... of seqlen_q. It takes
// 32 keys at once: matrix j of ldmatrix has the keys 8 i + 2 j, + 1, i < 4, as its rows, so that lane 4 r + c gets
// eight neighbours, 8 c ... 8 c + 7, of query r. Nothing of it is read again soon (st.cs). address_of(key): where the
// warp's eight queries are; offset_of(query): where the tile's first key is in dbias. `keys`: of the tile, that there
// are.
template <class T, int kKeys, class AddressOf, class OffsetOf>
__device__ __forceinline__ void store_dbias(const BwdArgs& args, int first_query, int seqlen_q, int keys, float factor,
                                            const AddressOf& address_of, const OffsetOf& offset_of) {
  const int lane = thread_again() % 32, query = first_query + lane / 4, first_key = lane % 4 * 8;
  const bool shared = args.p.dbias_shared;
  const auto load = [&](uint32_t(&piece)[4], int n) {
    load_matrices_transposed(piece, address_of(n * 32 + lane % 8 / 2 * 8 + lane / 8 * 2 + lane % 2));
    if (kMayOverflow<T> && factor != 1 && !shared) {
#pragma unroll
      for (uint32_t& pair : piece) pair = scale_pair(pair, 1 / factor);
    }
  };
  if (args.aligned_dbias && !shared && keys >= kKeys) {
    uint32_t pieces[kKeys / 32][4];
#pragma unroll
    for (int n = 0; n < kKeys / 32; ++n) load(pieces[n], n);
    if (query >= seqlen_q) return;
    T* const to = static_cast<T*>(args.p.dbias.data) + offset_of(query) + first_key;
#pragma unroll
    for (int n = 0; n < kKeys / 32; ++n) {
      const uint32_t(&piece)[4] = pieces[n];
      __stcs(reinterpret_cast<uint4*>(to + n * 32), uint4{piece[0], piece[1], piece[2], piece[3]});
    }
    return;
  }
#pragma unroll 1
  for (int n = 0; n < kKeys / 32; ++n) {
    uint32_t piece[4];
    load(piece, n);
    if (query >= seqlen_q) continue;
    const int64_t at = offset_of(query) + first_key + n * 32;
    const int left = keys - first_key - n * 32;
    if (shared) {
      add_dbias<T>(static_cast<float*>(args.p.dbias.data) + at, left, args.aligned_dbias, piece, 1 / factor);
    } else {
      store_dbias_elements(static_cast<uint16_t*>(args.p.dbias.data) + at, left, piece);
    }
  }
}

}  // namespace xformers::cuda
