// Shared memory of Hopper's backward kernels, as they are launched: tiles as the copy engine leaves them, barriers by
// name.
#pragma once

#include "xformers/kernels/cuda/attention/dropout.cuh"
#include "xformers/kernels/cuda/attention/sm90/bwd_schedule.cuh"
#include "xformers/kernels/cuda/attention/sm90/scored_work.cuh"

namespace xformers::cuda::sm90 {

inline constexpr int kBwdWorkSlots = 2;  // tiles that are known: the one that is worked on, the one to come

// Rings of tiles; none of these where there are no stages.
template <int kStages, int kBytes>
struct TileRing {
  alignas(1024) unsigned char at_[kStages][kBytes];
  __device__ __forceinline__ auto operator[](int stage) -> unsigned char (&)[kBytes] { return at_[stage]; }
};
template <int kBytes>
struct TileRing<0, kBytes> {};

// What scored policies have besides tiles of the bias.
template <int kPolicyIndex, bool kScored = kBwdPolicies[kPolicyIndex].scored>
struct ScoredBwdMemory {
  template <class Init>
  __device__ __forceinline__ void init(const Init&) {}
};
template <int kPolicyIndex>
struct ScoredBwdMemory<kPolicyIndex, true> {
  static constexpr int kBiasStages = kBwdPolicies[kPolicyIndex].bias_stages, kConsumers = BwdPolicy::kConsumers;

  ScoredWork work[kBwdWorkSlots];
  float warp_slopes[kBwdWorkSlots][4 * kConsumers];  // what warps have summed up for the gradient of a slope
  PhiloxKey philox;
  uint64_t bias_full[kBiasStages][kConsumers], bias_empty[kBiasStages][kConsumers];

  template <class Init>
  __device__ __forceinline__ void init(const Init& init_one) {
    for (int i = 0; i < kBiasStages; ++i)
      for (int c = 0; c < kConsumers; ++c) init_one(bias_full[i][c], 1), init_one(bias_empty[i][c], 4);
  }
};

template <int kPolicyIndex>
struct BwdMemory {
  static constexpr BwdPolicy kPolicy = kBwdPolicies[kPolicyIndex];
  static constexpr int kQStages = kPolicy.q_stages, kDoutStages = kPolicy.dout_stages, kKStages = kPolicy.k_stages,
                       kVStages = kPolicy.v_stages;

  TileRing<kKStages, kPolicy.k_bytes()> k;
  [[no_unique_address]] TileRing<kPolicy.has_dk() ? kVStages : 0, kPolicy.v_bytes()> v;
  TileRing<kQStages, kPolicy.q_bytes()> q;
  TileRing<kDoutStages, kPolicy.dout_bytes()> dout;
  [[no_unique_address]] TileRing<kPolicy.has_dk() ? kPolicy.ds_stages : 0, kPolicy.ds_bytes()> ds;  // [keys, queries]
  // Of each stage, each consumer's: queries by a panel of its 64 keys.
  [[no_unique_address]] TileRing<kPolicy.scored ? kPolicy.bias_stages * kPolicy.kConsumers : 0, kPolicy.bias_bytes()>
      bias;
  // Of Q's rows: delta; lse in units of log2(e), or, where any is large, natural and with what it was rounded by. Rows
  // that see no key, or are none, have +inf. They are where (the first piece of) Q is in its ring.
  bool large[kQStages];
  alignas(16) float lse[kQStages][kPolicy.block_m];
  alignas(16) float lse_low[kQStages][kPolicy.block_m];
  alignas(16) float delta[kQStages][kPolicy.block_m];
  float warp_extremes[2][8];  // fp16: of dO, or dS, and of V
  BwdWork work[kBwdWorkSlots];
  [[no_unique_address]] ScoredBwdMemory<kPolicyIndex> scored;
  // "full": what was copied (or found out) is there; "empty": those who read it are done.
  struct Barriers {
    uint64_t work_full[kBwdWorkSlots], work_empty[kBwdWorkSlots];
    uint64_t k_full[kKStages], k_empty[kKStages], v_full[kVStages], v_empty[kVStages];
    uint64_t q_full[kQStages], q_empty[kQStages];  // and lse, delta
    uint64_t dout_full[kDoutStages], dout_empty[kDoutStages];
    uint64_t loaded;          // the last copies of a tile are under way
    uint64_t ds_empty;        // of one stage: dQ of the step before is done
    uint64_t turn[kQStages];  // where sums have an order: dq of these queries may be added to
  } barriers;

  // By one thread.
  __device__ __forceinline__ void init_barriers() {
    constexpr int kConsumerWarps = 4 * kPolicy.kConsumers;
    const auto init = [](uint64_t& barrier, int arrivals) { mbarrier::init(shared_address(&barrier), arrivals); };
    const auto init_ring = [&](auto& full, auto& empty, int arrivals) {
      for (uint64_t& each : full) init(each, arrivals);
      for (uint64_t& each : empty) init(each, kConsumerWarps);
    };
    for (int i = 0; i < kBwdWorkSlots; ++i) {
      init(barriers.work_full[i], 1), init(barriers.work_empty[i], kConsumerWarps + 3);  // and the other producers
    }
    init_ring(barriers.k_full, barriers.k_empty, 1), init_ring(barriers.v_full, barriers.v_empty, 1);
    init_ring(barriers.q_full, barriers.q_empty, 2);  // by both loaders
    init_ring(barriers.dout_full, barriers.dout_empty, 1);
    init(barriers.ds_empty, kConsumerWarps), init(barriers.loaded, 1);
    for (uint64_t& each : barriers.turn) init(each, 1);
    scored.init(init);
    mbarrier::fence_init();
  }
};

}  // namespace xformers::cuda::sm90
