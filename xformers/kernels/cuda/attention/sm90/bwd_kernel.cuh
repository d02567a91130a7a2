// Backward on Hopper's tensor cores: blocks that stay, one per multiprocessor, and take one tile of keys of a head
// after the other. Their first warpgroup finds tiles and has them copied (bwd_producer.cuh), the others multiply
// (bwd_consumer.cuh). (Shah et al. 2024, FlashAttention-3.)
#pragma once

#include "xformers/kernels/cuda/attention/sm90/bwd_consumer.cuh"
#include "xformers/kernels/cuda/attention/sm90/bwd_producer.cuh"

namespace xformers::cuda::sm90 {

template <class T, int kPolicyIndex>
__global__ void __launch_bounds__(kBwdPolicies[kPolicyIndex].threads(), 1)
    attention_bwd_sm90(const __grid_constant__ BwdGrid args) {
  constexpr BwdPolicy kPolicy = kBwdPolicies[kPolicyIndex];
  using Memory = BwdMemory<kPolicyIndex>;
  extern __shared__ __align__(1024) unsigned char smem[];
  Memory& memory = *reinterpret_cast<Memory*>(smem);
  const int group = __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x) / 128, 0);
  if (threadIdx.x == 0) {
    prefetch_map(args.k_map), prefetch_map(args.v_map), prefetch_map(args.q_map), prefetch_map(args.dout_map);
    memory.init_barriers();
  }
  __syncthreads();
  let_next_kernel_start();
  if (group == 0) {
    wgmma::give_registers<kPolicy.producer_registers()>();
    const int warp = __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x) / 32, 0);
    if (warp == 0) find_key_tiles<kPolicyIndex>(args, memory);
    if (warp == 1 && threadIdx.x % 32 == 0) TileLoader<kPolicyIndex>(args, memory).run();
    if (warp == 2) load_statistics<kPolicyIndex>(args, memory);
    if (warp == 3 && threadIdx.x % 32 == 0) await_turns<kPolicyIndex>(args, memory);
  } else {
    wgmma::take_registers<kPolicy.registers>();
    BwdConsumer<T, kPolicyIndex>(args, memory, group - 1).run();
  }
}

}  // namespace xformers::cuda::sm90
