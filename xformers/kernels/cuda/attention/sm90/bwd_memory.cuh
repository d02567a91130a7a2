// Shared memory of Hopper's backward kernel, as it is launched: tiles as the copy engine leaves them, barriers by name.
#pragma once

#include "xformers/kernels/cuda/attention/sm90/bwd_schedule.cuh"

namespace xformers::cuda::sm90 {

inline constexpr int kBwdWorkSlots = 2;  // tiles that are known: the one that is worked on, the one to come

template <int kPolicyIndex>
struct BwdMemory {
  static constexpr BwdPolicy kPolicy = kBwdPolicies[kPolicyIndex];
  static constexpr int kStages = kPolicy.stages, kKeyStages = kPolicy.key_stages;

  alignas(1024) unsigned char k[kKeyStages][kPolicy.key_bytes()];
  alignas(1024) unsigned char v[kKeyStages][kPolicy.key_bytes()];
  alignas(1024) unsigned char q[kStages][kPolicy.query_bytes()];
  alignas(1024) unsigned char dout[kStages][kPolicy.query_bytes()];
  alignas(1024) unsigned char ds[2][kPolicy.ds_bytes()];  // [keys, queries] of this step and the one before
  // Of Q's rows: delta; lse in units of log2(e), or, where any is large, natural and with what it was rounded by. Rows
  // that see no key, or are none, have +inf.
  bool large[kStages];
  alignas(16) float lse[kStages][kPolicy.block_m];
  alignas(16) float lse_low[kStages][kPolicy.block_m];
  alignas(16) float delta[kStages][kPolicy.block_m];
  float warp_extremes[2][8];  // fp16: of dO, or dS, and of V
  BwdWork work[kBwdWorkSlots];
  // "full": what was copied (or found out) is there; "empty": those who read it are done.
  struct Barriers {
    uint64_t work_full[kBwdWorkSlots], work_empty[kBwdWorkSlots];
    uint64_t k_full[kKeyStages], k_empty[kKeyStages], v_full[kKeyStages], v_empty[kKeyStages];
    uint64_t q_full[kStages], q_empty[kStages], dout_full[kStages], dout_empty[kStages];  // q: and lse, delta
    uint64_t turn[kStages];  // where sums have an order: dq of these queries may be added to
  } barriers;

  // By one thread.
  __device__ __forceinline__ void init_barriers() {
    constexpr int kConsumerWarps = 4 * kPolicy.kConsumers;
    const auto init = [](uint64_t& barrier, int arrivals) { mbarrier::init(shared_address(&barrier), arrivals); };
    for (int i = 0; i < kBwdWorkSlots; ++i) {
      init(barriers.work_full[i], 1), init(barriers.work_empty[i], kConsumerWarps + 3);  // and the other producers
    }
    for (int i = 0; i < kKeyStages; ++i) {
      init(barriers.k_full[i], 1), init(barriers.k_empty[i], kConsumerWarps);
      init(barriers.v_full[i], 1), init(barriers.v_empty[i], kConsumerWarps);
    }
    for (int i = 0; i < kStages; ++i) {
      init(barriers.q_full[i], 2), init(barriers.q_empty[i], kConsumerWarps);  // by both loaders
      init(barriers.dout_full[i], 1), init(barriers.dout_empty[i], kConsumerWarps);
      init(barriers.turn[i], 1);
    }
    mbarrier::fence_init();
  }
};

}  // namespace xformers::cuda::sm90
