// Tiles of keys that a block mask shows to many more queries than the others (global blocks) would be worked on alone
// when all others are done. So a tile that is long takes one part of its queries, and leaves the others, as equal parts
// of its range, to blocks that come behind those of all tiles. Whoever of a tile's parts is the last adds up their dk
// and dv, in their order, and writes them.
#pragma once

#include "xformers/kernels/cuda/attention/sm80/bwd_outputs.cuh"

namespace xformers::cuda::sm80 {

constexpr bool parts_long(const BwdPolicy& policy) { return policy.features == Features::kBlocked; }

// Steps of queries that a tile of keys sees: those of the key block that sees most. By all lanes of a warp.
template <BwdPolicy kPolicy>
__device__ __forceinline__ int visible_steps(const BwdArgs& args, const BlockPlace& place) {
  const AttentionShape& shape = args.p.shape;
  const BlockMask& mask = args.p.blocks;
  const int heads = static_cast<int>(shape.num_heads()), per_group = static_cast<int>(shape.heads_per_group),
            batch = place.head_of_all / heads, head = place.head_of_all % heads;
  const int64_t layout =
      batch * mask.batch_stride + head / per_group * mask.group_stride + head % per_group * mask.head_stride;
  const int64_t first = int64_t{place.tile} * kPolicy.block_n() / mask.block_k,
                last = min(ceil_div((place.tile + int64_t{1}) * kPolicy.block_n(), mask.block_k), mask.num_k_blocks);
  const int64_t block = first + threadIdx.x % 32;  // a tile has no more than 16 of them
  int queries = 0;
  if (block < last) {
    const int32_t* const offsets = mask.query_offsets + layout * (mask.num_k_blocks + 1) + block;
    queries = (offsets[1] - offsets[0]) * static_cast<int>(mask.block_q);
  }
  return __reduce_max_sync(kAllLanes, queries) / kPolicy.block_m;
}

// What this block works on: a tile, or the first of its parts; of those behind, a part of another tile, or nothing
// (false). By all threads; `shared.share()` is known behind the next barrier.
template <BwdPolicy kPolicy>
__device__ __forceinline__ bool find_part(const BwdArgs& args, BlockPlace& place, int& splits,
                                          BwdShared<kPolicy>& shared) {
  constexpr int kMostParts = 16;
  const LongTiles& tiles = args.long_tiles;
  const int all = static_cast<int>(args.p.shape.batch * args.p.shape.num_heads() * args.tiles);
  const int index = static_cast<int>(blockIdx.x) - all;  // >= 0: behind all tiles
  LongPart* const of_block = reinterpret_cast<LongPart*>(&shared.walk());
  if (threadIdx.x < 32) {
    LongPart mine{place.head_of_all, place.tile, 0, 1, 0};
    if (index < 0) {
      const int parts = min(visible_steps<kPolicy>(args, place) / tiles.steps, kMostParts);
      if (threadIdx.x == 0) {
        if (parts > 1) {
          const int first = atomicAdd(tiles.counts, parts);
          if (first + parts <= kLongParts) {
            mine.parts = parts, mine.place = first;
            for (int part = 1; part < parts; ++part) {
              tiles.parts[first + part] = {mine.head_of_all, mine.tile, part, parts, first};
            }
          }
        }
        __threadfence();
        atomicAdd(tiles.counts + 1, 1);
      }
    } else if (threadIdx.x == 0) {  // all tiles are at work or done
      const volatile int* const asked = tiles.counts + 1;
      while (*asked < all) __nanosleep(200);
      __threadfence();
      mine = tiles.parts[index];
    }
    if (threadIdx.x == 0) *of_block = mine, shared.share() = {mine.parts, mine.place, false};
  }
  __syncthreads();
  const LongPart part = *of_block;
  __syncthreads();  // before the walk is there
  place = {part.head_of_all, part.tile, part.part};
  splits = part.parts;
  return part.parts > 0;
}

// Leaves this part's sums. True: it is the tile's last, and the sums are those of all.
template <BwdPolicy kPolicy>
__device__ __forceinline__ bool join_parts(const BwdArgs& args, const BwdTile& tile, BwdShared<kPolicy>& shared,
                                           typename BwdWarp<kPolicy>::Sums& acc_dk,
                                           typename BwdWarp<kPolicy>::Sums& acc_dv) {
  constexpr int kFours = kPolicy.block_n() * kPolicy.head_dim / 4;
  auto& share = shared.share();
  const auto sums_of = [&](int part) {
    return reinterpret_cast<float4*>(args.partial) + int64_t{share.place + part} * (2 * kFours) + threadIdx.x;
  };
  store_partial<kPolicy>(sums_of(tile.split), acc_dk);
  store_partial<kPolicy>(sums_of(tile.split) + kFours, acc_dv);
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) share.last = atomicAdd(args.long_tiles.done + share.place, 1) == share.parts - 1;
  __syncthreads();
  if (!share.last) return false;
  __threadfence();
  using Warp = BwdWarp<kPolicy>;
  clear<Warp::kKeyTiles, Warp::kDimTiles>(acc_dk), clear<Warp::kKeyTiles, Warp::kDimTiles>(acc_dv);
  for (int part = 0; part < share.parts; ++part) {
    add_partial<kPolicy>(acc_dk, sums_of(part));
    add_partial<kPolicy>(acc_dv, sums_of(part) + kFours);
  }
  return true;
}

}  // namespace xformers::cuda::sm80
