// Bands as the CUDA kernels count them, in 32 bits.
#pragma once

#include <cstdint>

#include "xformers/kernels/cuda/attention/fragment.cuh"
#include "xformers/kernels/cuda/attention/seqlen.cuh"
#include "xformers/kernels/params/band.h"

namespace xformers::cuda {

using Range = RangeOf<int>;
using Band = BandOf<int>;

// Keys that one query sees; it may begin before the sequence, and end before it begins.
__device__ __forceinline__ Range visible_keys(const Band& band, int query) {
  return band.full_range({query, query + 1});
}

// The phase: elements of scores that are not visible become `hidden` (-inf before the softmax, 0 behind it), whatever
// they were. Every row of the fragment sees one interval of columns, visible_of(row): keys, where rows are queries
// (visible_keys); queries, where scores are transposed ({band.first_query(key), band.last_query(key) + 1}).
// Rows count from the fragment's first one, columns as `first_column` does.
template <int kRowTiles, int kColumnTiles, class VisibleOf>
__device__ __forceinline__ void mask(Fragment<kRowTiles, kColumnTiles>& x, int first_column,
                                     const VisibleOf& visible_of, float hidden = -INFINITY) {
  for_each_row<kRowTiles>([&](int r, int half) {
    const Range visible = visible_of(lane_row(r, half));
    const int first = first_column + lane_column(0), low = visible.begin - first, high = visible.end - first;
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (n * 8 + i < low || n * 8 + i >= high) x[r][n][half * 2 + i] = hidden;
      }
  });
}

// The same by squares of 16 columns: of the 16 in square s of the fragment, shown_of(row, s) has a bit for each that
// the row sees, the lowest first. (Of those columns alone that the lane holds, if it likes.)
template <int kRowTiles, int kColumnTiles, class ShownOf>
__device__ __forceinline__ void mask_squares(Fragment<kRowTiles, kColumnTiles>& x, const ShownOf& shown_of,
                                             float hidden = -INFINITY) {
  static_assert(kColumnTiles % 2 == 0);
  for_each_row<kRowTiles>([&](int r, int half) {
#pragma unroll
    for (int square = 0; square < kColumnTiles / 2; ++square) {
      const uint32_t shown = shown_of(lane_row(r, half), square) >> lane_column(0);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (!(shown >> (i / 2 * 8 + i % 2) & 1)) x[r][2 * square + i / 2][half * 2 + i % 2] = hidden;
      }
    }
  });
}

}  // namespace xformers::cuda
