// What the rows of a tile are: queries, or, where the heads of a group that share K and V lie side by side in one tile,
// pairs of a query and a head, row = query * packed_heads + head.
#pragma once

#include "xformers/kernels/base/divide.h"
#include "xformers/kernels/cuda/attention/mask.cuh"
#include "xformers/kernels/cuda/attention/scheduler.cuh"

namespace xformers::cuda {

// Where a row's numbers lie: its query in the batch row, its head in the group.
struct RowPlace {
  int64_t query;
  int head;
};

// Rows count from the start of the sequence.
struct TileRows {
  const HeadTile& tile;
  const Divisor<uint32_t>& packed_heads;  // of the call

  __device__ __forceinline__ int query_of(int row) const {
    return packed_heads.size() == 1 ? row : static_cast<int>(packed_heads.quotient(static_cast<uint32_t>(row)));
  }
  __device__ __forceinline__ int head_of(int row) const {
    return packed_heads.size() == 1 ? tile.head : row - query_of(row) * static_cast<int>(packed_heads.size());
  }
  __device__ __forceinline__ bool inside(int row) const { return row < tile.first + tile.rows; }
  __device__ __forceinline__ RowPlace place_of(int row) const {
    return {tile.sequence.q_begin + query_of(row), head_of(row)};
  }
  // Queries of the rows [first, first + rows).
  __device__ __forceinline__ Range queries(int first, int rows) const {
    return {query_of(first), query_of(first + rows - 1) + 1};
  }
  __device__ __forceinline__ Range queries() const { return queries(tile.first, tile.rows); }
};

}  // namespace xformers::cuda
