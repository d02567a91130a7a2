// Blocks that run together and read each other's shared memory (sm_90): the cluster of a block is what the launch says
// (launch_cluster). On other architectures a cluster is a block, and nothing is done.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace xformers::cuda::cluster {

// What all threads of the cluster wrote to shared memory before is seen behind it. By all threads of all its blocks.
__device__ __forceinline__ void sync() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;\n" ::: "memory");
#endif
}

// A place in shared memory of this block, and the same place of block `rank` of the cluster.
__device__ __forceinline__ uint32_t place_of(uint32_t address, int rank) {
  uint32_t there = address;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;\n" : "=r"(there) : "r"(address), "r"(rank));
#endif
  return there;
}
__device__ __forceinline__ float2 load_pair(uint32_t place) {
  float2 pair{};
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("ld.shared::cluster.v2.f32 {%0, %1}, [%2];\n" : "=f"(pair.x), "=f"(pair.y) : "r"(place));
#endif
  return pair;
}

}  // namespace xformers::cuda::cluster
