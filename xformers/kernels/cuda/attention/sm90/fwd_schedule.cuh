// Which tiles a block works on, one after the other: its first one by its own index, and then every so-manieth, or,
// where tiles differ (bands, packed sequences), the next that is left.
//
// A few heads at a time, so that their K and V stay in L2; tile after tile of all of them, from the end: with causal
// masks the long ones come first. The shortest tiles of all heads come last, and fill the gaps that long ones leave.
#pragma once

#include "xformers/kernels/cuda/attention/mask.cuh"
#include "xformers/kernels/cuda/attention/scheduler.cuh"
#include "xformers/kernels/cuda/attention/sm90/fwd_args.h"
#include "xformers/kernels/cuda/attention/sm90/fwd_policy.h"
#include "xformers/kernels/cuda/base/launch.h"

namespace xformers::cuda::sm90 {

// Where rows of a tile begin, as copies count: by tensor map.
struct alignas(16) RowsPlace {
  int row, head, group, batch;
};
// Of a dimension that is the same for all, there is one.
__device__ __forceinline__ RowsPlace rows_place(const HeadsTensor& t, const HeadTile& tile, int64_t row) {
  return {static_cast<int>(row), t.head_stride == 0 ? 0 : tile.head, t.group_stride == 0 ? 0 : tile.group,
          t.batch_stride == 0 ? 0 : static_cast<int>(tile.sequence.batch)};
}

// What the producer's first warp finds out about a tile, for all.
struct FwdWork {
  HeadTile tile;  // rows <= 0: there are no more
  Band band;
  Range blocks;  // of block_n keys, that some row sees
  RowsPlace q, k, v;
};

class TileOrder {
 public:
  __device__ __forceinline__ explicit TileOrder(const FwdGrid& args) : args_(args), next_(blockIdx.x) {}

  // By all lanes of one warp: the next tile, written by the first lane. False: it has no rows, look again.
  template <int kPolicyIndex>
  __device__ __forceinline__ bool next(FwdWork& work) {
    constexpr FwdPolicy kPolicy = kFwdPolicies[kPolicyIndex];
    const AttentionShape& shape = args_.p.shape;
    const bool writes = threadIdx.x % 32 == 0;
    const int index = next_index();
    if (index >= args_.all_tiles) {
      if (writes) work.tile.rows = 0;
      return true;
    }
    const auto [head, tile] = head_and_tile(index);
    const int per_group = static_cast<int>(shape.heads_per_group), groups = static_cast<int>(shape.num_groups),
              group = head / per_group;
    const RowTile rows = query_tile(shape, args_.p.seq, group / groups, tile, kPolicy.block_m());
    if (rows.rows <= 0) return false;
    if (!writes) return true;
    work.tile = {rows.sequence, group % groups, head % per_group, rows.first, rows.rows};
    const Band band(args_.p.band, rows.sequence);
    const Range keys = band.key_range({rows.first, rows.first + rows.rows});
    work.band = band;
    work.blocks = {keys.begin / kPolicy.block_n, ceil_div(keys.end, kPolicy.block_n)};
    work.q = rows_place(args_.p.q, work.tile, rows.sequence.q_begin + rows.first);
    work.k = rows_place(args_.p.k, work.tile, rows.sequence.k_begin);
    work.v = rows_place(args_.p.v, work.tile, rows.sequence.k_begin);
    return true;
  }

 private:
  struct Place {
    int head, tile;
  };
  __device__ __forceinline__ Place head_and_tile(int index) const {
    int tiles = static_cast<int>(args_.tiles) - args_.short_tiles, first = args_.short_tiles;
    if (index >= args_.heads * tiles) index -= args_.heads * tiles, tiles = args_.short_tiles, first = 0;
    const int turn = index / args_.bundle, bundle = turn / tiles;
    return {bundle * args_.bundle + index - turn * args_.bundle, first + tiles - 1 - (turn - bundle * tiles)};
  }

  __device__ __forceinline__ int next_index() {
    const int index = next_;
    if (!args_.next_tile) {
      next_ += static_cast<int>(gridDim.x);
      return index;
    }
    if (index == blockIdx.x) wait_for_kernel_before();  // which has set the count to 0
    int taken = 0;
    if (threadIdx.x % 32 == 0) taken = atomicAdd(args_.next_tile, 1);
    next_ = static_cast<int>(gridDim.x) + __shfl_sync(kAllLanes, taken, 0);
    return index;
  }

  const FwdGrid& args_;
  int next_;
};

}  // namespace xformers::cuda::sm90
