// A warp's accumulators of [16 * kRowTiles, 8 * kColumnTiles] as mma.m16n8 leaves them (wgmma.m64 too, whose four warps
// have one row tile each): in every row tile a lane holds rows lane / 4 and + 8, in every eight columns the two from
// lane % 4 * 2 on. Element i of [row tile][column tile] is of row half i / 2 and of column i % 2.
//
// What rows and columns are is the caller's affair: forward's scores are [queries, keys], backward's [keys, queries],
// outputs [queries, dims]. A phase (mask.cuh, softmax.cuh, score_mods.cuh) is a function over fragments and facts by
// value, and knows no kernel's arguments or tiles.
#pragma once

namespace xformers::cuda {

template <int kRowTiles, int kColumnTiles>
using Fragment = float[kRowTiles][kColumnTiles][4];

// A number for each row that a lane holds, [row tile][half]: the four lanes of a row have the same one, or each its
// part.
template <int kRowTiles>
using RowValues = float[kRowTiles][2];

inline constexpr unsigned kAllLanes = 0xffffffffu;

// Row and column of the fragment that this lane holds. `lane`: for a caller that reads it anew.
__device__ __forceinline__ int lane_row(int row_tile, int half, int lane = threadIdx.x % 32) {
  return row_tile * 16 + half * 8 + lane / 4;
}
__device__ __forceinline__ int lane_column(int column_tile, int lane = threadIdx.x % 32) {
  return column_tile * 8 + lane % 4 * 2;
}

// Over the four lanes of a row. A NaN counts for nothing in a maximum, and makes a sum NaN.
__device__ __forceinline__ float max_of_row(float x) {
  x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, 1));
  return fmaxf(x, __shfl_xor_sync(kAllLanes, x, 2));
}
__device__ __forceinline__ float sum_of_row(float x) {
  x += __shfl_xor_sync(kAllLanes, x, 1);
  return x + __shfl_xor_sync(kAllLanes, x, 2);
}

// Of all lanes' numbers, none of which is below 0 or NaN: these have the order of their bits.
__device__ __forceinline__ float max_of_warp(float x) {
  return __uint_as_float(__reduce_max_sync(kAllLanes, __float_as_uint(x)));
}

__device__ __forceinline__ float sum_of_warp(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  return x;
}

// visit(row tile, half) for each row of a lane.
template <int kRowTiles, class Visit>
__device__ __forceinline__ void for_each_row(const Visit& visit) {
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
    for (int half = 0; half < 2; ++half) visit(r, half);
}

template <int kRowTiles, int kColumnTiles>
__device__ __forceinline__ void clear(Fragment<kRowTiles, kColumnTiles>& x) {
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) x[r][n][i] = 0;
}

template <int kRowTiles, int kColumnTiles>
__device__ __forceinline__ void multiply(Fragment<kRowTiles, kColumnTiles>& x, float factor) {
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) x[r][n][i] *= factor;
}

// Of this lane.
template <int kRowTiles, int kColumnTiles>
__device__ __forceinline__ bool has_nan(const Fragment<kRowTiles, kColumnTiles>& x) {
  bool any = false;
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) any |= isnan(x[r][n][i]);
  return any;
}

}  // namespace xformers::cuda
