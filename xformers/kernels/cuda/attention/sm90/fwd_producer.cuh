// The warpgroup that multiplies nothing: one warp finds tiles, one thread of another has their Q, K and V copied. Where
// rows lie is their business alone.
#pragma once

#include "xformers/kernels/cuda/attention/sm90/fwd_memory.cuh"

namespace xformers::cuda::sm90 {

// By all lanes of a warp.
template <int kPolicyIndex>
__device__ __forceinline__ void find_tiles(const FwdGrid& args, FwdMemory<kPolicyIndex>& memory) {
  auto& barriers = memory.barriers;
  constexpr bool kScored = kFwdPolicies[kPolicyIndex].scored;
  TileOrder order(args);
  if constexpr (kScored) {
    if (threadIdx.x % 32 == 0 && args.drops) memory.philox = dropout_key(args.p.dropout);
  }
  for (unsigned turn = 0;; ++turn) {
    const unsigned slot = turn % kWorkSlots;
    FwdWork& work = memory.work[slot];
    wait_empty(barriers.work_empty[slot], turn / kWorkSlots % 2);
    while (!order.template next<kPolicyIndex>(work)) {  // packed sequences have room for more tiles than there are
    }
    if constexpr (kScored) {
      if (threadIdx.x % 32 == 0 && work.tile.rows > 0) memory.scored_work[slot] = scored_work(args, work.tile);
    }
    arrive_warp(barriers.work_full[slot]);
    if (work.tile.rows <= 0) return;
  }
}

// One thread; where keys are paged, a warp, whose lanes each have boxes of K and V copied.
template <int kPolicyIndex, bool kPaged>
class Loader {
  static constexpr FwdPolicy kPolicy = kFwdPolicies[kPolicyIndex];
  using Memory = FwdMemory<kPolicyIndex>;

 public:
  __device__ __forceinline__ Loader(const FwdGrid& args, Memory& memory) : args_(args), memory_(memory) {}

  __device__ __forceinline__ void run() {
    for_each_tile([&](const FwdWork& work, int slot) { load(work, slot); });
  }

 protected:
  template <class Load>
  __device__ __forceinline__ void for_each_tile(const Load& load) {
    for (Stage<kWorkSlots> slot;; slot.advance()) {
      wait_full(memory_.barriers.work_full[slot.index()], slot.parity());
      const FwdWork& work = memory_.work[slot.index()];
      if (work.tile.rows <= 0) return;
      if (!work.blocks.empty()) load(work, slot.index());
      if (leads()) mbarrier::arrive(shared_address(&memory_.barriers.work_empty[slot.index()]));
    }
  }
  __device__ __forceinline__ static bool leads() { return !kPaged || threadIdx.x % 32 == 0; }

  __device__ __forceinline__ void load(const FwdWork& work, int slot) {
    const int end = work.blocks.end;
    int block = work.blocks.begin;
    load_k(work, block);
    load_q(work.q);
    load_bias(slot, block);
    // Consumers ask for the next block's K before this one's V.
#pragma unroll 1
    for (; block < end; ++block) {
      if (block + 1 < end) load_k(work, block + 1);
      load_v(work, block);
      if (block + 1 < end) load_bias(slot, block + 1);
    }
  }

  __device__ __forceinline__ void load_q(const RowsPlace& at) {
    wait_empty(memory_.barriers.q_empty[q_.index()], q_.parity());
    if (leads()) {
      copy_rows<kPolicy.head_dim, kPolicy.block_m()>(memory_.q[q_.index()], args_.q_map, at, 0,
                                                     memory_.barriers.q_full[q_.index()], L2Keep::kFirstOut);
    }
    q_.advance();
  }
  __device__ __forceinline__ void load_k(const FwdWork& work, int block) {
    wait_empty(memory_.barriers.k_empty[k_.index()], k_.parity());
    copy_keys<kPolicy.head_dim>(memory_.k[k_.index()], args_.k_map, work, work.k, block,
                                memory_.barriers.k_full[k_.index()]);
    k_.advance();
  }
  __device__ __forceinline__ void load_v(const FwdWork& work, int block) {
    wait_empty(memory_.barriers.v_empty[v_.index()], v_.parity());
    copy_keys<kPolicy.head_dim_v>(memory_.v[v_.index()], args_.v_map, work, work.v, block,
                                  memory_.barriers.v_full[v_.index()]);
    v_.advance();
  }
  template <int kDims>
  __device__ __forceinline__ void copy_keys(unsigned char* to, const CUtensorMap& map, const FwdWork& work,
                                            const RowsPlace& at, int block, uint64_t& barrier) {
    constexpr int kRows = kPolicy.block_n;
    if constexpr (kPaged) {
      copy_pages<kDims, kRows>(to, map, at, args_.p, work.tile.sequence, block * kRows, args_.page_part, barrier,
                               L2Keep::kLastOut);
    } else {
      copy_rows<kDims, kRows>(to, map, at, block * kRows, barrier, L2Keep::kLastOut);
    }
  }

  // Behind V, which the step before needs. Of a bias that heads share L2 keeps what it can.
  __device__ __forceinline__ void load_bias(int slot, int block) {
    if constexpr (kPolicy.scored) {
      const ScoreBias& bias = args_.p.mods.bias;
      if (!bias.data) return;
      const RowsPlace& at = memory_.scored_work[slot].bias;
      const L2Keep keep = bias.head_stride == 0 ? L2Keep::kLastOut : L2Keep::kFirstOut;
#pragma unroll
      for (int consumer = 0; consumer < kPolicy.consumers; ++consumer) {
        wait_empty(memory_.bias_empty[bias_.index()][consumer], bias_.parity());
        copy_rows<kPolicy.block_n, 64>(memory_.bias[bias_.index()][consumer], args_.bias_map, at,
                                       args_.has_bias_row ? 0 : consumer * 64,
                                       memory_.bias_full[bias_.index()][consumer], keep, block * kPolicy.block_n);
      }
      bias_.advance();
    }
  }

  const FwdGrid& args_;
  Memory& memory_;
  Stage<kPolicy.scored ? kPolicy.bias_stages : 1> bias_;
  Stage<kPolicy.q_stages> q_;
  Stage<kPolicy.stages> k_, v_;
};

}  // namespace xformers::cuda::sm90
