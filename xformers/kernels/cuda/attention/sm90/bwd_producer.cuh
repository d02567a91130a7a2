// The warpgroup that multiplies nothing: one warp finds tiles, one thread of another has their K, V, Q and dO copied, a
// third warp brings the statistics of the queries, and a thread of the last waits for turns. Where rows lie is their
// business alone.
#pragma once

#include <cfloat>

#include "xformers/kernels/cuda/attention/sm90/bwd_memory.cuh"
#include "xformers/kernels/cuda/attention/softmax.cuh"
#include "xformers/kernels/cuda/attention/split_merge.cuh"
#include "xformers/kernels/cuda/attention/turns.cuh"

namespace xformers::cuda::sm90 {

// By all lanes of a warp.
template <int kPolicyIndex>
__device__ __forceinline__ void find_key_tiles(const BwdGrid& args, BwdMemory<kPolicyIndex>& memory) {
  auto& barriers = memory.barriers;
  KeyTileOrder order(args);
  for (Stage<kBwdWorkSlots> slot;; slot.advance()) {
    BwdWork& work = memory.work[slot.index()];
    wait_empty(barriers.work_empty[slot.index()], slot.parity());
    while (!order.template next<kPolicyIndex>(work)) {  // packed sequences have room for more tiles than there are
    }
    arrive_warp(barriers.work_full[slot.index()]);
    if (work.tile.rows <= 0) return;
  }
}

// visit(work) for the tiles of this block, one after the other; by one thread, or by all lanes of a warp.
template <int kPolicyIndex, class Visit>
__device__ __forceinline__ void for_each_work(BwdMemory<kPolicyIndex>& memory, bool arrives, const Visit& visit) {
  for (Stage<kBwdWorkSlots> slot;; slot.advance()) {
    wait_full(memory.barriers.work_full[slot.index()], slot.parity());
    const BwdWork& work = memory.work[slot.index()];
    if (work.tile.rows <= 0) return;
    visit(work);
    if (arrives) mbarrier::arrive(shared_address(&memory.barriers.work_empty[slot.index()]));
  }
}

// One thread.
template <int kPolicyIndex>
__device__ __forceinline__ void load_tiles(const BwdGrid& args, BwdMemory<kPolicyIndex>& memory) {
  constexpr BwdPolicy kPolicy = kBwdPolicies[kPolicyIndex];
  auto& barriers = memory.barriers;
  Stage<kPolicy.key_stages> keys;
  Stage<kPolicy.stages> rows;
  const auto load_keys = [&](auto& to, const CUtensorMap& map, const RowsPlace& at, auto& full, auto& empty) {
    wait_empty(empty[keys.index()], keys.parity());
    copy_rows<kPolicy.head_dim, kPolicy.kBlockN>(to[keys.index()], map, at, 0, full[keys.index()], L2Keep::kFirstOut);
  };
  const auto load_queries = [&](auto& to, const CUtensorMap& map, const RowsPlace& at, int block, auto& full,
                                auto& empty) {
    wait_empty(empty[rows.index()], rows.parity());
    copy_rows<kPolicy.head_dim, kPolicy.block_m>(to[rows.index()], map, at, block * kPolicy.block_m, full[rows.index()],
                                                 L2Keep::kLastOut);
  };
  for_each_work(memory, true, [&](const BwdWork& work) {
    if (work.blocks.empty()) return;
    load_keys(memory.k, args.k_map, work.k, barriers.k_full, barriers.k_empty);
#pragma unroll 1
    for (int block = work.blocks.begin; block < work.blocks.end; ++block) {
      load_queries(memory.q, args.q_map, work.q, block, barriers.q_full, barriers.q_empty);
      if (block == work.blocks.begin) load_keys(memory.v, args.v_map, work.v, barriers.v_full, barriers.v_empty);
      load_queries(memory.dout, args.dout_map, work.dout, block, barriers.dout_full, barriers.dout_empty);
      rows.advance();
    }
    keys.advance();
  });
}

// By all lanes of a warp: lse and delta beside Q.
template <int kPolicyIndex>
__device__ __forceinline__ void load_statistics(const BwdGrid& args, BwdMemory<kPolicyIndex>& memory) {
  constexpr BwdPolicy kPolicy = kBwdPolicies[kPolicyIndex];
  constexpr int kRows = kPolicy.block_m / 32;  // of a lane
  const int lane = threadIdx.x % 32;
  Stage<kPolicy.stages> rows;
  for_each_work(memory, lane == 0, [&](const BwdWork& work) {
    const float *const all_lse = static_cast<const float*>(args.lse) + work.statistics, *const all_delta =
                                                                                            static_cast<const float*>(
                                                                                                args.delta) +
                                                                                            work.statistics;
#pragma unroll 1
    for (int block = work.blocks.begin; block < work.blocks.end; ++block) {
      const int first = block * kPolicy.block_m + lane, seqlen_q = work.tile.sequence.seqlen_q;
      float lse[kRows], delta[kRows];
      bool large = false;
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const bool inside = first + i * 32 < seqlen_q;
        lse[i] = inside ? all_lse[first + i * 32] : INFINITY;
        delta[i] = inside ? all_delta[first + i * 32] : 0;
        large |= fabsf(lse[i]) >= kLargeScore * kLog2e && lse[i] <= FLT_MAX;
      }
      large = __any_sync(kAllLanes, large);
      const int stage = rows.index();
      wait_empty(memory.barriers.q_empty[stage], rows.parity());
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        if (large && lse[i] != INFINITY) {
          const RowLse<float> natural = load_lse<float>(args.p, work.tile.sequence.batch, work.tile.group,
                                                        work.tile.head, work.tile.sequence.q_begin + first + i * 32);
          lse[i] = natural.lse;
          memory.lse_low[stage][i * 32 + lane] = natural.low;
        } else if (large) {
          memory.lse_low[stage][i * 32 + lane] = 0;
        }
        memory.lse[stage][i * 32 + lane] = lse[i];
        memory.delta[stage][i * 32 + lane] = delta[i];
      }
      if (lane == 0) memory.large[stage] = large;
      arrive_warp(memory.barriers.q_full[stage]);
      rows.advance();
    }
    __syncwarp();  // before the work is given back
  });
}

// One thread.
template <int kPolicyIndex>
__device__ __forceinline__ void await_turns(const BwdGrid& args, BwdMemory<kPolicyIndex>& memory) {
  constexpr BwdPolicy kPolicy = kBwdPolicies[kPolicyIndex];
  Stage<kPolicy.stages> rows;
  for_each_work(memory, true, [&](const BwdWork& work) {
    if (!args.turns) return;
#pragma unroll 1
    for (int block = work.blocks.begin; block < work.blocks.end; ++block) {
      const int stage = rows.index(), first = block * kPolicy.block_m;
      const Range queries{first, min(first + kPolicy.block_m, work.tile.sequence.seqlen_q)};
      wait_empty(memory.barriers.q_empty[stage], rows.parity());
      await_turn(args.turns + work.dq_block + block, turn_of(work.band, queries, work.tile.first, kPolicy.kBlockN));
      mbarrier::arrive(shared_address(&memory.barriers.turn[stage]));
      rows.advance();
    }
  });
}

}  // namespace xformers::cuda::sm90
