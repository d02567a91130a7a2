// Shared memory of Hopper's forward kernel, as it is launched: tiles as the copy engine leaves them, barriers by name.
#pragma once

#include "xformers/kernels/cuda/attention/block_walk.cuh"
#include "xformers/kernels/cuda/attention/dropout.cuh"
#include "xformers/kernels/cuda/attention/sm90/fwd_schedule.cuh"

namespace xformers::cuda::sm90 {

inline constexpr int kWorkSlots = 2;  // tiles that are known: the one that is worked on, the one to come

// What scored policies have besides: each consumer's tiles of the bias, 64 rows by panels of 64 keys.
template <int kPolicyIndex, bool kScored = kFwdPolicies[kPolicyIndex].scored>
struct ScoredMemory {
  template <class Init>
  __device__ __forceinline__ void init_scored(const Init&) {}
};
template <int kPolicyIndex>
struct ScoredMemory<kPolicyIndex, true> {
  static constexpr int kBiasStages = kFwdPolicies[kPolicyIndex].bias_stages,
                       kConsumers = kFwdPolicies[kPolicyIndex].consumers;

  alignas(1024) unsigned char bias[kBiasStages][kConsumers][kFwdPolicies[kPolicyIndex].bias_bytes()];
  ScoredWork scored_work[kWorkSlots];
  PhiloxKey philox;
  uint64_t bias_full[kBiasStages][kConsumers], bias_empty[kBiasStages][kConsumers];

  template <class Init>
  __device__ __forceinline__ void init_scored(const Init& init) {
    for (int i = 0; i < kBiasStages; ++i)
      for (int c = 0; c < kConsumers; ++c) init(bias_full[i][c], 1), init(bias_empty[i][c], 4);
  }
};

// What policies of block masks have besides: the steps that are known, and who is done with them. A step's K lies no
// more than the K stages ahead of the one that is worked on, and the one behind it is found before its V is copied.
template <int kPolicyIndex, bool kBlocked = kFwdPolicies[kPolicyIndex].blocked>
struct BlockedMemory {
  template <class Init>
  __device__ __forceinline__ void init_blocked(const Init&) {}
};
template <int kPolicyIndex>
struct BlockedMemory<kPolicyIndex, true> {
  static constexpr FwdPolicy kOf = kFwdPolicies[kPolicyIndex];
  static constexpr int kSteps = kOf.stages < 4 ? 4 : 8;

  BlockWalk<LinesOf::kQueries, kOf.block_m() / kSquare, kOf.block_n / kSquare, kSteps> walk;
  uint64_t step_full[kSteps], step_empty[kSteps];

  template <class Init>
  __device__ __forceinline__ void init_blocked(const Init& init) {
    for (int i = 0; i < kSteps; ++i) init(step_full[i], 1), init(step_empty[i], 4 * kOf.consumers);
  }
};

template <int kPolicyIndex>
struct FwdMemory : ScoredMemory<kPolicyIndex>, BlockedMemory<kPolicyIndex> {
  static constexpr FwdPolicy kPolicy = kFwdPolicies[kPolicyIndex];

  alignas(1024) unsigned char q[kPolicy.q_stages][kPolicy.q_bytes()];
  alignas(1024) unsigned char k[kPolicy.stages][kPolicy.k_bytes()];
  alignas(1024) unsigned char v[kPolicy.stages][kPolicy.v_bytes()];
  FwdWork work[kWorkSlots];
  // "full": what was copied (or found out) is there; "empty": those who read it are done.
  struct Barriers {
    uint64_t work_full[kWorkSlots], work_empty[kWorkSlots], q_full[kPolicy.q_stages], q_empty[kPolicy.q_stages];
    uint64_t k_full[kPolicy.stages], k_empty[kPolicy.stages], v_full[kPolicy.stages], v_empty[kPolicy.stages];
  } barriers;

  // By one thread.
  __device__ __forceinline__ void init_barriers() {
    constexpr int kConsumerWarps = 4 * kPolicy.consumers;
    const auto init = [](uint64_t& barrier, int arrivals) { mbarrier::init(shared_address(&barrier), arrivals); };
    for (int i = 0; i < kWorkSlots; ++i) {
      init(barriers.work_full[i], 1), init(barriers.work_empty[i], kConsumerWarps + 1);  // and the loader
    }
    for (int i = 0; i < kPolicy.q_stages; ++i) init(barriers.q_full[i], 1), init(barriers.q_empty[i], kConsumerWarps);
    for (int i = 0; i < kPolicy.stages; ++i) {
      init(barriers.k_full[i], 1), init(barriers.k_empty[i], kConsumerWarps);
      init(barriers.v_full[i], 1), init(barriers.v_empty[i], kConsumerWarps);
    }
    this->init_scored(init);
    this->init_blocked(init);
    mbarrier::fence_init();
  }
};

}  // namespace xformers::cuda::sm90
