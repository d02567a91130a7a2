// Forward on Hopper's tensor cores: blocks that stay, one per multiprocessor, and take tile after tile. Their first
// warpgroup finds tiles and has them copied (fwd_producer.cuh), the others multiply (fwd_consumer.cuh). Rows that are
// copied ahead hide where one tile ends and the next begins. (Shah et al. 2024, FlashAttention-3.)
#pragma once

#include "xformers/kernels/cuda/attention/sm90/fwd_blocked.cuh"
#include "xformers/kernels/cuda/attention/sm90/fwd_consumer.cuh"
#include "xformers/kernels/cuda/attention/sm90/fwd_producer.cuh"

namespace xformers::cuda::sm90 {

template <class T, int kPolicyIndex>
__global__ void __launch_bounds__(kFwdPolicies[kPolicyIndex].threads(), 1)
    attention_fwd_sm90(const __grid_constant__ FwdGrid args) {
  constexpr FwdPolicy kPolicy = kFwdPolicies[kPolicyIndex];
  using Memory = FwdMemory<kPolicyIndex>;
  extern __shared__ __align__(1024) unsigned char smem[];
  Memory& memory = *reinterpret_cast<Memory*>(smem);
  const int group = __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x) / 128, 0);
  if (threadIdx.x == 0) {
    prefetch_map(args.q_map), prefetch_map(args.k_map), prefetch_map(args.v_map);
    memory.init_barriers();
  }
  __syncthreads();
  if (group == 0) {
    wgmma::give_registers<kPolicy.producer_registers()>();
    if (threadIdx.x < 32) find_tiles<kPolicyIndex>(args, memory);
    if constexpr (kPolicy.blocked) {
      if (threadIdx.x / 32 == 1) BlockedLoader<kPolicyIndex>(args, memory).run();
    } else if (kFwdPolicies[kPolicyIndex].scored || !args.p.seq.paged()) {
      if (threadIdx.x == 32) Loader<kPolicyIndex, false>(args, memory).run();
    } else if (threadIdx.x / 32 == 1) {
      Loader<kPolicyIndex, true>(args, memory).run();
    }
  } else {
    wgmma::take_registers<kPolicy.consumer_registers()>();
    if constexpr (kPolicy.blocked) {
      BlockedConsumer<T, kPolicyIndex>(args, memory, group - 1).run();
    } else {
      Consumer<T, kPolicyIndex>(args, memory, group - 1).run();
    }
  }
}

}  // namespace xformers::cuda::sm90
