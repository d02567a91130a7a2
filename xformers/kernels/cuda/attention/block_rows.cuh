// What a block mask leaves of a forward tile, whose rows are pairs of a query and a head (rows.cuh): its steps, and
// what rows see of each.
#pragma once

#include "xformers/kernels/cuda/attention/block_walk.cuh"
#include "xformers/kernels/cuda/attention/rows.cuh"

namespace xformers::cuda {

// Of a step, what some rows see: squares of 16 keys, the lowest bit first.
struct SeenSquares {
  uint32_t some = ~0u, all = ~0u;  // that any row sees; that all rows see whole

  __device__ __forceinline__ bool operator()(int square) const { return some >> square & 1; }
  __device__ __forceinline__ bool none() const { return some == 0; }
  // Of the step's `count` squares each is wanted: products have nothing to skip.
  __device__ __forceinline__ bool every(int count) const { return (some & all_squares(count)) == all_squares(count); }
  // Every row sees all of squares [first, first + count).
  __device__ __forceinline__ bool is_full(int first, int count) const {
    return (all >> first & all_squares(count)) == all_squares(count);
  }
};

// In shared memory. kRows: of the tile; steps are of kKeys.
template <int kRows, int kKeys>
struct BlockRows {
  // Rows of packed heads may begin inside a square of queries.
  BlockWalk<LinesOf::kQueries, kRows / kSquare + 1, kKeys / kSquare> walk;
  unsigned char line_of[kRows], query_of[kRows];  // of each row, and its query in the 16; behind the last, its own

  // Finds the first steps. By all threads; the caller synchronises.
  __device__ __forceinline__ void begin(const BlockMask& mask, const TileRows& rows, Range steps) {
    const HeadTile& tile = rows.tile;
    const Range queries = rows.queries();
    for (int row = threadIdx.x; row < kRows; row += blockDim.x) {
      const int query = rows.query_of(tile.first + min(row, tile.rows - 1));
      line_of[row] = static_cast<unsigned char>(query / kSquare - queries.begin / kSquare);
      query_of[row] = static_cast<unsigned char>(query % kSquare);
    }
    if (threadIdx.x < 32) {
      walk.begin(mask, static_cast<int>(tile.sequence.batch), tile.group, tile.head, queries.begin, queries.end, steps);
    }
  }

  // Of step number `turn`, what a warp's rows [first, first + kCount) see. All lanes.
  template <int kCount>
  __device__ __forceinline__ SeenSquares seen_by(int first, int turn) const {
    const int line = line_of[first + threadIdx.x % kCount];
    const uint32_t seen = walk.at(turn).seen[line], partial = walk.at(turn).partial[line];
    return {__reduce_or_sync(kAllLanes, seen), __reduce_and_sync(kAllLanes, seen & ~partial)};
  }

  // What blocks hide of scores [rows from first_row on, keys from square first_square on] -> -inf.
  template <int kRowTiles, int kColumnTiles>
  __device__ __forceinline__ void hide(Fragment<kRowTiles, kColumnTiles>& scores, const BlockMask& mask, int turn,
                                       int first_row, int first_square) const {
    mask_squares<kRowTiles, kColumnTiles>(scores, [&](int row, int square) {
      return walk.keys_of(mask, turn, line_of[first_row + row], first_square + square, query_of[first_row + row]);
    });
  }
};

}  // namespace xformers::cuda
