// The places of an index that point to one row, in rising order, as a whole block needs them.
//
// A short index is searched by every block. For a long one, make_place_lists has made a list of the places of every
// row, in any order: mostly of one place; several are sorted in shared memory, and where even that is too small, the
// index is searched after all.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "xformers/kernels/cuda/indexing/places.h"

namespace xformers::cuda {

__device__ __forceinline__ bool in_range(int64_t row, int64_t rows) {
  return static_cast<uint64_t>(row) < static_cast<uint64_t>(rows);
}

constexpr int kSortedPlaces = 256;

struct PlacesShared {
  unsigned hits[32];  // a bit per place of the part of the index that is searched at the moment
  int count;
  int64_t found;
  int64_t list[kSortedPlaces];
  int64_t sorted[kSortedPlaces];
};

// Whether no other place points to the row of this one. By the whole block.
__device__ __forceinline__ bool is_only_place(const PlaceIndex& places, int64_t row, int64_t place) {
  if (places.head) return places.head[row] == place && places.next[place] < 0;
  bool other = false;
  for (int64_t i = threadIdx.x; i < places.count; i += blockDim.x) other |= i != place && places.index[i] == row;
  return !__syncthreads_or(other);
}

struct RowPlaces {
  int64_t only;  // the place that points to a row, -1: none; where there are several, one of them
  bool several;
};

// By the whole block, once.
__device__ __forceinline__ RowPlaces places_of(const PlaceIndex& places, PlacesShared& shared, int64_t row) {
  if (places.head) {
    const int64_t head = places.head[row];
    return {head, head >= 0 && places.next[head] >= 0};
  }
  int count = 0;
  for (int64_t base = 0; base < places.count; base += blockDim.x) {
    const int64_t i = base + threadIdx.x;
    const bool hit = i < places.count && places.index[i] == row;
    if (hit) shared.found = i;
    count += __syncthreads_count(hit);
  }
  return {count > 0 ? shared.found : -1, count > 1};
}

// fn(place) for the places that point to `row`, by the whole block; fn has no barriers.
template <class Fn>
__device__ __forceinline__ void for_each_place(const PlaceIndex& places, PlacesShared& shared, int64_t row,
                                               const Fn& fn) {
  const int thread = threadIdx.x, threads = blockDim.x;
  if (places.head) {
    const int64_t head = places.head[row];
    if (head < 0) return;
    if (places.next[head] < 0) {
      fn(head);
      return;
    }
    __syncthreads();  // of an earlier call
    if (thread == 0) {
      int count = 0;
      for (int64_t place = head; place >= 0 && count <= kSortedPlaces; place = places.next[place]) {
        if (count < kSortedPlaces) shared.list[count] = place;
        ++count;
      }
      shared.count = count;
    }
    __syncthreads();
    const int count = shared.count;
    if (count <= kSortedPlaces) {
      for (int i = thread; i < count; i += threads) {
        const int64_t place = shared.list[i];
        int smaller = 0;
        for (int j = 0; j < count; ++j) smaller += shared.list[j] < place;
        shared.sorted[smaller] = place;
      }
      __syncthreads();
      for (int i = 0; i < count; ++i) fn(shared.sorted[i]);
      return;
    }
  }
  for (int64_t base = 0; base < places.count; base += threads) {
    const bool hit = base + thread < places.count && places.index[base + thread] == row;
    const unsigned hits = __ballot_sync(0xffffffffu, hit);
    if (thread % 32 == 0) shared.hits[thread / 32] = hits;
    if (!__syncthreads_or(hit)) continue;
    for (int warp = 0; warp < threads / 32; ++warp) {
      for (unsigned left = shared.hits[warp]; left; left &= left - 1) {
        fn(base + warp * 32 + (__ffs(left) - 1));
      }
    }
    __syncthreads();
  }
}

}  // namespace xformers::cuda
