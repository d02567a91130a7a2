// Where a block works, and what it is told about it once.
#pragma once

#include "xformers/kernels/cuda/attention/bwd_args.h"
#include "xformers/kernels/cuda/attention/fwd_args.h"
#include "xformers/kernels/cuda/attention/mask.cuh"
#include "xformers/kernels/cuda/attention/rows.cuh"
#include "xformers/kernels/cuda/attention/sm80_fp32/halves.cuh"
#include "xformers/kernels/cuda/attention/sm80_fp32/order.cuh"
#include "xformers/kernels/cuda/attention/softmax.cuh"

namespace xformers::cuda::sm80_fp32 {

// With causal masks, the queries at the end and the keys at the beginning have most to do, and come first.
template <int kBlockM>
__device__ __forceinline__ HeadTile fwd_tile(const FwdArgs& args) {
  const LaunchPlace place = launch_place(args.tiles, args.heads_at_once);
  return head_tile<RowsOf::kQueries>(args.p.shape, args.p.seq, place.head, args.tiles - 1 - place.tile, kBlockM,
                                     static_cast<int>(args.packed_heads.size()));
}

// The row of a tensor from which a sequence's queries or keys count, of the tile's heads.
__device__ __forceinline__ const float* first_row(const HeadsTensor& tensor, const HeadTile& tile, int64_t begin) {
  return static_cast<const float*>(tensor.data) + tile.offset(tensor) + begin * tensor.seq_stride;
}
// Read anew where it is used: kept in registers, it would push others out.
__device__ __forceinline__ ScoreUnit read_unit(const ScoreUnit& shared) {
  const uint4 bits = load_shared_16(shared_address(&shared));
  ScoreUnit unit;
  unit.scale = __uint_as_float(bits.x), unit.scale_log2 = __uint_as_float(bits.y), unit.room = __uint_as_float(bits.z);
  return unit;
}
// Of products of Q and K as they are split.
template <class Args>
__device__ __forceinline__ ScoreUnit product_unit(const Args& args) {
  constexpr float kUnit = 1 / (kUsualScale * kUsualScale);
  return {static_cast<float>(args.p.softmax_scale) * kUnit, args.scale_log2 * kUnit};
}

// In shared memory, since it is seldom read and would take registers.
struct FwdPlace {
  HeadTile tile;
  Band band;
  Range keys, full;    // that any row sees; that all rows see
  const float *k, *v;  // the first key
  bool unusual_q;      // rows of Q have ratios (halves.cuh)
  alignas(16) ScoreUnit unit;
};
__device__ __forceinline__ FwdPlace fwd_place(const FwdArgs& args, const HeadTile& tile) {
  const AttentionFwdParams& p = args.p;
  const Band band(p.band, tile.sequence);
  const Range queries = TileRows{tile, args.packed_heads}.queries();
  return {tile,
          band,
          band.key_range(queries),
          band.full_range(queries),
          first_row(p.k, tile, tile.sequence.k_begin),
          first_row(p.v, tile, tile.sequence.k_begin),
          false,
          product_unit(args)};
}

struct BwdPlace {
  HeadTile tile;
  Band band;
  Range queries;          // that see any of the keys
  int64_t head;           // of the whole: (batch * num_groups + group) * heads_per_group + head
  const float *q, *dout;  // the first query
  SlopePart* slope_part;  // of this tile, or null
  alignas(16) ScoreUnit unit;
};
__device__ __forceinline__ BwdPlace bwd_place(const BwdArgs& args, const HeadTile& tile) {
  const AttentionBwdParams& p = args.p;
  const Band band(p.band, tile.sequence);
  return {tile,
          band,
          band.query_range({tile.first, tile.first + tile.rows}),
          (tile.sequence.batch * p.shape.num_groups + tile.group) * p.shape.heads_per_group + tile.head,
          first_row(p.q, tile, tile.sequence.q_begin),
          first_row(p.dout, tile, tile.sequence.q_begin),
          nullptr,
          product_unit(args)};
}

}  // namespace xformers::cuda::sm80_fp32
