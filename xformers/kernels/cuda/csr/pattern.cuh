// Reading a pattern of compressed rows that nobody has looked at: every answer lies inside of the matrix.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace xformers::cuda {

// `index`, or the nearest number in [0, count); count > 0.
__device__ __forceinline__ int inside(int index, int64_t count) {
  return index < 0 ? 0 : index < count ? index : static_cast<int>(count) - 1;
}

struct Places {
  int begin, end;
  __device__ __forceinline__ int count() const { return end - begin; }
};

// The places of a row.
__device__ __forceinline__ Places places_of_row(const int32_t* offsets, int64_t row, int64_t nnz) {
  const int begin = min(max(offsets[row], 0), static_cast<int>(nnz));
  return {begin, min(max(offsets[row + 1], begin), static_cast<int>(nnz))};
}

// The last of the rows [low, high) for which start(row) <= place; low where there is none. start ascends.
template <class Start>
__device__ __forceinline__ int last_row_at(int low, int high, int64_t place, const Start& start) {
  while (high - low > 1) {
    const int middle = low + (high - low) / 2;
    (start(middle) <= place ? low : high) = middle;
  }
  return low;
}

// The same by a whole warp, which asks at 32 rows at a time.
template <class Start>
__device__ __forceinline__ int last_row_by_warp(int rows, int64_t place, const Start& start) {
  const int lane = threadIdx.x % 32;
  int low = 0, count = rows;
  while (count > 1) {
    const int step = (count + 31) / 32, ahead = lane * step;
    const unsigned reached = __ballot_sync(0xffffffffu, ahead < count && start(low + ahead) <= place);
    const int last = reached ? 31 - __clz(static_cast<int>(reached)) : 0;
    low += last * step;
    count = min(step, count - last * step);
  }
  return low;
}

}  // namespace xformers::cuda
