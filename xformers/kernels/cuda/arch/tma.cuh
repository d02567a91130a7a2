// Copies of boxes of a tensor by the copy engine (sm_90, TMA). The tensor is described by a tensor map
// (base/tensor_map.h), a parameter of the kernel; what of the box lies outside of it arrives as zeros.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace xformers::cuda {

// What L2 keeps longest, or gives up first.
enum class L2Keep : uint64_t { kFirstOut = 0x12F0000000000000, kLastOut = 0x14F0000000000000 };

__device__ __forceinline__ void prefetch_map(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];\n" ::"l"(reinterpret_cast<uint64_t>(&map)) : "memory");
}

// Where a box begins, dimension by dimension; the first is contiguous.
struct BoxPlace {
  int at[5];
};

// By one thread. The bytes of the box count for `barrier` (mbarrier.cuh).
__device__ __forceinline__ void copy_box(uint32_t to, const CUtensorMap& map, const BoxPlace& place, uint32_t barrier,
                                         L2Keep keep) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1, {%3, %4, %5, %6, %7}], [%2], %8;\n" ::"r"(to),
      "l"(reinterpret_cast<uint64_t>(&map)), "r"(barrier), "r"(place.at[0]), "r"(place.at[1]), "r"(place.at[2]),
      "r"(place.at[3]), "r"(place.at[4]), "l"(static_cast<uint64_t>(keep))
      : "memory");
}

// What this thread has written to shared memory is seen by copies and products that begin after the next barrier.
__device__ __forceinline__ void fence_shared_for_async() {
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}

}  // namespace xformers::cuda
