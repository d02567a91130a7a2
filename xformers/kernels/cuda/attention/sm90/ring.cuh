// How a producer's copies reach those who multiply: rings of tiles in shared memory, whose barriers say what is full
// and what is empty.
#pragma once

#include "xformers/kernels/cuda/arch/copy.cuh"
#include "xformers/kernels/cuda/arch/mbarrier.cuh"
#include "xformers/kernels/cuda/arch/tma.cuh"
#include "xformers/kernels/cuda/arch/wgmma.cuh"
#include "xformers/kernels/cuda/attention/scheduler.cuh"
#include "xformers/kernels/cuda/attention/sm90/tile_rows.h"

namespace xformers::cuda::sm90 {

// A place in a ring of `kStages`, and the parity of the phase in which it is full for the time at hand.
template <int kStages>
struct Stage {
  int index_ = 0;
  uint32_t parity_ = 0;

  __device__ __forceinline__ int index() const { return index_; }
  __device__ __forceinline__ uint32_t parity() const { return parity_; }
  __device__ __forceinline__ void advance() {
    if (++index_ == kStages) index_ = 0, parity_ ^= 1;
  }
};

// `barriers` is an array; those who fill wait for the phase before ("empty" of the other parity).
__device__ __forceinline__ void wait_full(uint64_t& barrier, uint32_t parity) {
  mbarrier::wait(shared_address(&barrier), parity);
}
__device__ __forceinline__ void wait_empty(uint64_t& barrier, uint32_t parity) {
  mbarrier::wait(shared_address(&barrier), parity ^ 1);
}
// One arrival per warp.
__device__ __forceinline__ void arrive_warp(uint64_t& barrier) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) mbarrier::arrive(shared_address(&barrier));
}

// Where rows of a tile begin, as copies count: by tensor map.
struct alignas(16) RowsPlace {
  int row, head, group, batch;
};
// Of a dimension that is the same for all, there is one.
__device__ __forceinline__ RowsPlace rows_place(const HeadsTensor& t, const HeadTile& tile, int64_t row) {
  return {static_cast<int>(row), t.head_stride == 0 ? 0 : tile.head, t.group_stride == 0 ? 0 : tile.group,
          t.batch_stride == 0 ? 0 : static_cast<int>(tile.sequence.batch)};
}

__device__ __forceinline__ RowsPlace rows_place(const ScoreBias& t, const HeadTile& tile, int row) {
  return {t.q_stride == 0 ? 0 : row, t.head_stride == 0 ? 0 : tile.head, t.group_stride == 0 ? 0 : tile.group,
          t.batch_stride == 0 ? 0 : static_cast<int>(tile.sequence.index)};
}

// Rows [at.row + first, + kRows) of a head, panel by panel; kDims elements of them from `dim` on.
template <int kDims, int kRows>
__device__ __forceinline__ void copy_rows(unsigned char* to, const CUtensorMap& map, const RowsPlace& at, int first,
                                          uint64_t& barrier, L2Keep keep, int dim = 0) {
  mbarrier::arrive_expecting(shared_address(&barrier), tile_bytes(kRows, kDims));
#pragma unroll
  for (int panel = 0; panel < panels_of(kDims); ++panel) {
    copy_box(shared_address(to + panel * kRows * 128), map,
             {{dim + panel * wgmma::kPanel, at.row + first, at.head, at.group, at.batch}}, shared_address(&barrier),
             keep);
  }
}

// The same of keys in pages, by a warp: a box for every `part` keys, which lie in one page and are a multiple of eight,
// after which the swizzle comes again. Behind the last key of the sequence no page is looked up. The first boxes' pages
// are looked up before wait() has the place free.
template <int kDims, int kRows, class Wait>
__device__ __forceinline__ void copy_pages(unsigned char* to, const CUtensorMap& map, const RowsPlace& at,
                                           const AttentionProblem& p, const Sequence& sequence, int first, int part,
                                           uint64_t& barrier, L2Keep keep, const Wait& wait) {
  constexpr int kPanels = panels_of(kDims);
  const int lane = threadIdx.x % 32, boxes = kRows / part * kPanels;
  const auto from = [&](int box) {
    const int key = first + box / kPanels * part;
    return static_cast<int>(key < sequence.seqlen_k ? key_row(p.shape, p.seq, sequence, key) : p.shape.seqlen_k);
  };
  int row = lane < boxes ? from(lane) : 0;
  wait();
  if (lane == 0) mbarrier::arrive_expecting(shared_address(&barrier), tile_bytes(kRows, kDims));
  __syncwarp();
#pragma unroll 1
  for (int box = lane; box < boxes;) {
    const int panel = box % kPanels;
    copy_box(shared_address(to + panel * kRows * 128 + box / kPanels * part * 128), map,
             {{panel * wgmma::kPanel, row, at.head, at.group, at.batch}}, shared_address(&barrier), keep);
    box += 32;
    if (box < boxes) row = from(box);
  }
}

}  // namespace xformers::cuda::sm90
