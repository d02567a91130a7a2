// Barriers in shared memory (sm_90): threads arrive, copies announce bytes, others wait for a phase to end.
//
// A barrier is in phase 0, 1, 0, ... A phase ends when as many threads have arrived as init() said and all announced
// bytes are there. wait(b, parity) returns once the phase of that parity has ended: at first 0; a wait for parity 1 of
// a barrier that was never used returns at once, as if the phase before the first one had just ended.
#pragma once

#include <cstdint>

namespace xformers::cuda::mbarrier {

// By one thread; fence_init() and a barrier of the block before others use it.
__device__ __forceinline__ void init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(barrier), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void fence_init() { asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory"); }

__device__ __forceinline__ void arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(barrier) : "memory");
}
// Arrives, and so many bytes are to come in this phase.
__device__ __forceinline__ void arrive_expecting(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ __forceinline__ bool is_over(uint32_t barrier, uint32_t parity) {
  uint32_t over;
  asm volatile(
      "{\n.reg .pred p;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n}\n"
      : "=r"(over)
      : "r"(barrier), "r"(parity)
      : "memory");
  return over != 0;
}
__device__ __forceinline__ void wait(uint32_t barrier, uint32_t parity) {
  while (!is_over(barrier, parity)) {
  }
}

}  // namespace xformers::cuda::mbarrier
