// The warpgroup that multiplies nothing: one warp finds tiles, one thread of another has their Q, K and V copied. Where
// rows lie is their business alone.
#pragma once

#include "xformers/kernels/cuda/attention/sm90/fwd_memory.cuh"

namespace xformers::cuda::sm90 {

// By all lanes of a warp.
template <int kPolicyIndex>
__device__ __forceinline__ void find_tiles(const FwdGrid& args, FwdMemory<kPolicyIndex>& memory) {
  auto& barriers = memory.barriers;
  TileOrder order(args);
  for (unsigned turn = 0;; ++turn) {
    const unsigned slot = turn % kWorkSlots;
    FwdWork& work = memory.work[slot];
    wait_empty(barriers.work_empty[slot], turn / kWorkSlots % 2);
    while (!order.template next<kPolicyIndex>(work)) {  // packed sequences have room for more tiles than there are
    }
    arrive_warp(barriers.work_full[slot]);
    if (work.tile.rows <= 0) return;
  }
}

// One thread.
template <int kPolicyIndex>
class Loader {
  static constexpr FwdPolicy kPolicy = kFwdPolicies[kPolicyIndex];
  using Memory = FwdMemory<kPolicyIndex>;

 public:
  __device__ __forceinline__ Loader(const FwdGrid& args, Memory& memory) : args_(args), memory_(memory) {}

  __device__ __forceinline__ void run() {
    for (Stage<kWorkSlots> slot;; slot.advance()) {
      wait_full(memory_.barriers.work_full[slot.index()], slot.parity());
      const FwdWork& work = memory_.work[slot.index()];
      if (work.tile.rows <= 0) return;
      if (!work.blocks.empty()) load(work);
      mbarrier::arrive(shared_address(&memory_.barriers.work_empty[slot.index()]));
    }
  }

 private:
  __device__ __forceinline__ void load(const FwdWork& work) {
    const int end = work.blocks.end;
    int block = work.blocks.begin;
    load_k(work.k, block);
    load_q(work.q);
    // Consumers ask for the next block's K before this one's V.
#pragma unroll 1
    for (; block < end; ++block) {
      if (block + 1 < end) load_k(work.k, block + 1);
      load_v(work.v, block);
    }
  }

  __device__ __forceinline__ void load_q(const RowsPlace& at) {
    wait_empty(memory_.barriers.q_empty[q_.index()], q_.parity());
    copy_rows<kPolicy.head_dim, kPolicy.block_m()>(memory_.q[q_.index()], args_.q_map, at, 0,
                                                   memory_.barriers.q_full[q_.index()], L2Keep::kFirstOut);
    q_.advance();
  }
  __device__ __forceinline__ void load_k(const RowsPlace& at, int block) {
    wait_empty(memory_.barriers.k_empty[k_.index()], k_.parity());
    copy_rows<kPolicy.head_dim, kPolicy.block_n>(memory_.k[k_.index()], args_.k_map, at, block * kPolicy.block_n,
                                                 memory_.barriers.k_full[k_.index()], L2Keep::kLastOut);
    k_.advance();
  }
  __device__ __forceinline__ void load_v(const RowsPlace& at, int block) {
    wait_empty(memory_.barriers.v_empty[v_.index()], v_.parity());
    copy_rows<kPolicy.head_dim_v, kPolicy.block_n>(memory_.v[v_.index()], args_.v_map, at, block * kPolicy.block_n,
                                                   memory_.barriers.v_full[v_.index()], L2Keep::kLastOut);
    v_.advance();
  }

  const FwdGrid& args_;
  Memory& memory_;
  Stage<kPolicy.q_stages> q_;
  Stage<kPolicy.stages> k_, v_;
};

}  // namespace xformers::cuda::sm90
