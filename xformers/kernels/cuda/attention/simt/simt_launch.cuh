// Launches the kernels without tensor cores: results of up to 128 dims in wide tiles, of more in narrower ones, 512
// dims at a time.
#pragma once

#include <algorithm>

#include "xformers/kernels/cuda/attention/instances.h"
#include "xformers/kernels/cuda/attention/simt/policy.h"
#include "xformers/kernels/cuda/attention/simt/simt_bwd.cuh"
#include "xformers/kernels/cuda/attention/simt/simt_fwd.cuh"
#include "xformers/kernels/cuda/attention/tiles.h"
#include "xformers/kernels/cuda/base/launch.h"

namespace xformers::cuda::simt {

template <class T>
using Sum = std::conditional_t<std::is_same_v<T, double>, double, float>;

inline int64_t chunk_groups(int64_t dim, int chunks) { return (dim + chunks * kChunkDims - 1) / (chunks * kChunkDims); }

template <class T, int kTile, int kChunks>
void launch_forward_as(FwdArgs args, cudaStream_t stream) {
  using C = Sum<T>;
  const AttentionShape& shape = args.p.shape;
  args.tiles = max_tiles(shape.seqlen_q, args.p.seq, kTile);
  launch<fwd_smem_bytes<C, kTile>()>(attention_fwd_simt<T, C, kTile, kChunks>,
                                     shape.batch * shape.num_heads() * args.tiles,
                                     chunk_groups(shape.head_dim_v, kChunks), kThreads, stream, args);
}

template <class T, int kTile, int kChunks>
void launch_backward_as(BwdArgs args, cudaStream_t stream) {
  using C = Sum<T>;
  const AttentionShape& shape = args.p.shape;
  const int64_t heads = shape.batch * shape.num_heads();
  args.tiles = max_tiles(shape.seqlen_k, args.p.seq, kTile);
  args.query_blocks = max_tiles(shape.seqlen_q, args.p.seq, kTile);
  constexpr int kSmem = bwd_smem_bytes<C, kTile>();
  const int64_t widest = std::max(shape.head_dim, shape.head_dim_v);
  launch<kSmem>(attention_bwd_dkdv_simt<T, C, kTile, kChunks>, heads * args.tiles, chunk_groups(widest, kChunks),
                kThreads, stream, args);
  launch<kSmem>(attention_bwd_dq_simt<T, C, kTile, kChunks>, heads * args.query_blocks,
                chunk_groups(shape.head_dim, kChunks), kThreads, stream, args);
  if (!args.p.dbias_shared) return;
  const ScoreBias& dbias = args.p.dbias;
  args.tiles = (args.p.seq.most_keys + kTile - 1) / kTile;
  args.query_blocks = (args.p.seq.most_queries + kTile - 1) / kTile;
  const int64_t biases = own_entries(dbias.batch_stride, args.p.seq.num_sequences) *
                         own_entries(dbias.group_stride, shape.num_groups) *
                         own_entries(dbias.head_stride, shape.heads_per_group);
  launch<kSmem>(attention_shared_dbias_simt<T, C, kTile>, biases * args.tiles * args.query_blocks, 1, kThreads, stream,
                args);
}

template <class T>
void launch_forward(FwdArgs args, cudaStream_t stream) {
  constexpr bool kWide = std::is_same_v<T, double>;
  const int64_t dim_v = args.p.shape.head_dim_v;  // only results cost registers
  if (dim_v <= kNarrowDim) return launch_forward_as<T, kWide ? 32 : 64, 2>(args, stream);
  launch_forward_as<T, 32, 8>(args, stream);
}

template <class T>
void launch_backward(BwdArgs args, cudaStream_t stream) {
  if (std::max(args.p.shape.head_dim, args.p.shape.head_dim_v) <= kNarrowDim)
    return launch_backward_as<T, backward_tile(kNarrowDim), 2>(args, stream);
  launch_backward_as<T, backward_tile(kNarrowDim + 1), 8>(args, stream);
}

}  // namespace xformers::cuda::simt

#define XFORMERS_INSTANCE(type)                                                                                    \
  template void xformers::cuda::simt::launch_forward<xformers::cuda::type>(xformers::cuda::FwdArgs, cudaStream_t); \
  template void xformers::cuda::simt::launch_backward<xformers::cuda::type>(xformers::cuda::BwdArgs, cudaStream_t);
