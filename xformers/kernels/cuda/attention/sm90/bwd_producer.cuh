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
  // Both kernels of a head dim count: one behind the other's number.
  constexpr BwdPolicy kPolicy = kBwdPolicies[kPolicyIndex];
  KeyTileOrder order(args, args.next_tile ? args.next_tile + (kPolicy.has_dk() ? 0 : 1) : nullptr);
  if constexpr (kPolicy.scored) {
    if (threadIdx.x % 32 == 0 && args.drops) memory.scored.philox = dropout_key(args.p.dropout);
  }
  // Tiles that differ are taken when they are about to begin, not a tile ahead: so the longest come first, and those
  // that wait for another's sums find it at work. Of packed sequences the search, and the shortest of them, want the
  // time.
  const bool late = args.next_tile && (args.turns || !args.p.seq.packed());
  bool first = true;
  Stage<1> before;  // the tile whose copies are waited for
  for (Stage<kBwdWorkSlots> slot;; slot.advance()) {
    BwdWork& work = memory.work[slot.index()];
    wait_empty(barriers.work_empty[slot.index()], slot.parity());
    if (late && !first) {
      wait_full(barriers.loaded, before.parity());
      before.advance();
    }
    first = false;
    while (!order.template next<kPolicyIndex>(work)) {  // packed sequences have room for more tiles than there are
    }
    if constexpr (kPolicy.scored) {
      if (threadIdx.x % 32 == 0 && work.tile.rows > 0) {
        memory.scored.work[slot.index()] = scored_work(args.p, work.tile, 0);
      }
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
    visit(work, slot.index());
    if (arrives) mbarrier::arrive(shared_address(&memory.barriers.work_empty[slot.index()]));
  }
}

// One thread.
template <int kPolicyIndex>
class TileLoader {
  static constexpr BwdPolicy kPolicy = kBwdPolicies[kPolicyIndex];

 public:
  __device__ __forceinline__ TileLoader(const BwdGrid& args, BwdMemory<kPolicyIndex>& memory)
      : args_(args), memory_(memory) {}

  __device__ __forceinline__ void run() {
    for_each_work(memory_, true, [&](const BwdWork& work, int slot) {
      load(work, slot);
      mbarrier::arrive(shared_address(&memory_.barriers.loaded));
    });
  }

 private:
  __device__ __forceinline__ void load(const BwdWork& work, int slot) {
    if (work.blocks.empty()) return;
    // A single stage of K is free when the tile before is done; the first Q is there by then.
    if constexpr (kPolicy.k_stages > 1) load_k(work);
#pragma unroll 1
    for (int block = work.blocks.end - 1; block >= work.blocks.begin; --block) {
      load_q(work, block);
      if (block == work.blocks.end - 1) {
        if constexpr (kPolicy.k_stages == 1) load_k(work);
        if constexpr (kPolicy.has_dk()) load_v(work);
      }
      load_bias(work, slot, block);
      load_dout(work, block);
    }
  }
  __device__ __forceinline__ void load_k(const BwdWork& work) {
    auto& barriers = memory_.barriers;
    wait_empty(barriers.k_empty[k_.index()], k_.parity());
    copy_rows<kPolicy.head_dim, kPolicy.kBlockN>(memory_.k[k_.index()], args_.k_map, work.k, 0,
                                                 barriers.k_full[k_.index()], L2Keep::kFirstOut);
    k_.advance();
  }
  __device__ __forceinline__ void load_v(const BwdWork& work) {
    auto& barriers = memory_.barriers;
    wait_empty(barriers.v_empty[v_.index()], v_.parity());
    copy_rows<kPolicy.head_dim_v, kPolicy.kBlockN>(memory_.v[v_.index()], args_.v_map, work.v, 0,
                                                   barriers.v_full[v_.index()], L2Keep::kFirstOut);
    v_.advance();
  }
  __device__ __forceinline__ void load_q(const BwdWork& work, int block) {
    auto& barriers = memory_.barriers;
#pragma unroll
    for (int piece = 0; piece < kPolicy.q_pieces; ++piece) {
      wait_empty(barriers.q_empty[q_.index()], q_.parity());
      copy_rows<kPolicy.piece_dims(), kPolicy.block_m>(memory_.q[q_.index()], args_.q_map, work.q,
                                                       block * kPolicy.block_m, barriers.q_full[q_.index()],
                                                       L2Keep::kLastOut, piece * kPolicy.piece_dims());
      q_.advance();
    }
  }
  __device__ __forceinline__ void load_dout(const BwdWork& work, int block) {
    auto& barriers = memory_.barriers;
    wait_empty(barriers.dout_empty[dout_.index()], dout_.parity());
    copy_rows<kPolicy.head_dim_v, kPolicy.block_m>(memory_.dout[dout_.index()], args_.dout_map, work.dout,
                                                   block * kPolicy.block_m, barriers.dout_full[dout_.index()],
                                                   L2Keep::kLastOut);
    dout_.advance();
  }
  // Of a bias that heads share L2 keeps what it can.
  __device__ __forceinline__ void load_bias(const BwdWork& work, int slot, int block) {
    if constexpr (kPolicy.scored) {
      const ScoreBias& bias = args_.p.mods.bias;
      if (!bias.data) return;
      const L2Keep keep = bias.head_stride == 0 ? L2Keep::kLastOut : L2Keep::kFirstOut;
#pragma unroll
      for (int consumer = 0; consumer < kPolicy.kConsumers; ++consumer) {
        wait_empty(memory_.scored.bias_empty[bias_.index()][consumer], bias_.parity());
        copy_rows<64, kPolicy.block_m>(memory_.bias[bias_.index() * 2 + consumer], args_.bias_map,
                                       memory_.scored.work[slot].bias, args_.has_bias_row ? 0 : block * kPolicy.block_m,
                                       memory_.scored.bias_full[bias_.index()][consumer], keep,
                                       work.tile.first + consumer * 64);
      }
      bias_.advance();
    }
  }

  const BwdGrid& args_;
  BwdMemory<kPolicyIndex>& memory_;
  Stage<kPolicy.k_stages> k_;
  Stage<kPolicy.v_stages> v_;
  Stage<kPolicy.q_stages> q_;
  Stage<kPolicy.dout_stages> dout_;
  Stage<kPolicy.scored ? kPolicy.bias_stages : 1> bias_;
};

// By all lanes of a warp: lse and delta beside Q (its first piece).
template <int kPolicyIndex>
__device__ __forceinline__ void load_statistics(const BwdGrid& args, BwdMemory<kPolicyIndex>& memory) {
  constexpr BwdPolicy kPolicy = kBwdPolicies[kPolicyIndex];
  constexpr int kRows = kPolicy.block_m / 32;  // of a lane
  const int lane = threadIdx.x % 32;
  Stage<kPolicy.q_stages> rows;
  for_each_work(memory, lane == 0, [&](const BwdWork& work, int) {
    const float *const all_lse = static_cast<const float*>(args.lse) + work.statistics, *const all_delta =
                                                                                            static_cast<const float*>(
                                                                                                args.delta) +
                                                                                            work.statistics;
#pragma unroll 1
    for (int block = work.blocks.end - 1; block >= work.blocks.begin; --block) {
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
          if (!isnan(lse[i])) lse[i] = natural.lse;
          memory.lse_low[stage][i * 32 + lane] = natural.low - static_cast<float>(args.lse_shift) * kLn2;
        } else if (large) {
          memory.lse_low[stage][i * 32 + lane] = 0;
        }
        memory.lse[stage][i * 32 + lane] = lse[i];
        memory.delta[stage][i * 32 + lane] = delta[i];
      }
      if (lane == 0) memory.large[stage] = large;
      arrive_warp(memory.barriers.q_full[stage]);
      rows.advance();
#pragma unroll
      for (int piece = 1; piece < kPolicy.q_pieces; ++piece, rows.advance()) {
        wait_empty(memory.barriers.q_empty[rows.index()], rows.parity());
        arrive_warp(memory.barriers.q_full[rows.index()]);
      }
    }
    __syncwarp();  // before the work is given back
  });
}

// One thread.
template <int kPolicyIndex>
__device__ __forceinline__ void await_turns(const BwdGrid& args, BwdMemory<kPolicyIndex>& memory) {
  constexpr BwdPolicy kPolicy = kBwdPolicies[kPolicyIndex];
  Stage<kPolicy.q_stages> rows;
  for_each_work(memory, true, [&](const BwdWork& work, int) {
    if (!kPolicy.has_dk() || !args.turns) return;
#pragma unroll 1
    for (int block = work.blocks.end - 1; block >= work.blocks.begin; --block) {
      const int first = block * kPolicy.block_m;
      const Range queries{first, min(first + kPolicy.block_m, work.tile.sequence.seqlen_q)};
      wait_empty(memory.barriers.q_empty[rows.index()], rows.parity());
      await_turn(args.turns + work.dq_block + block, turn_of(work.band, queries, work.tile.first, kPolicy.kBlockN));
#pragma unroll
      for (int piece = 0; piece < kPolicy.q_pieces; ++piece, rows.advance()) {
        if (piece > 0) wait_empty(memory.barriers.q_empty[rows.index()], rows.parity());
        mbarrier::arrive(shared_address(&memory.barriers.turn[rows.index()]));
      }
    }
  });
}

}  // namespace xformers::cuda::sm90
