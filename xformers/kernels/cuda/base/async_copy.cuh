// Copies to shared memory that need no registers on their way: for rows that a thread fetches long before it looks at
// them. Each thread copies what it alone reads, so that its own wait suffices.
//
//   copy_async(slot, from); ... end_of_copies();      // copies are waited for in groups
//   wait_for_copies<kLater>();                        // until all but the last kLater groups are there
#pragma once

#include <cuda_pipeline.h>

namespace xformers::cuda {

// An access of To: 4, 8 or 16 bytes; smaller ones come at once.
template <class To>
__device__ __forceinline__ void copy_async(To* to, const void* from) {
  if constexpr (sizeof(To) >= 4) {
    __pipeline_memcpy_async(to, from, sizeof(To));
  } else {
    *to = *static_cast<const To*>(from);
  }
}

__device__ __forceinline__ void end_of_copies() { __pipeline_commit(); }

template <int kLater>
__device__ __forceinline__ void wait_for_copies() {
  __pipeline_wait_prior(kLater);
}

}  // namespace xformers::cuda
