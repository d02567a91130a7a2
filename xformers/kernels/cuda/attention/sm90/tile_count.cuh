// Which tile a block that stays takes next: its first one by its own index, and then every so-manieth, or, where tiles
// differ (bands, packed sequences), the next that is left.
#pragma once

#include "xformers/kernels/cuda/attention/fragment.cuh"
#include "xformers/kernels/cuda/base/launch.h"

namespace xformers::cuda::sm90 {

class TileCount {
 public:
  // `counter`: of the tiles that are taken, or null.
  __device__ __forceinline__ explicit TileCount(int* counter) : counter_(counter), next_(blockIdx.x) {}

  // By all lanes of one warp.
  __device__ __forceinline__ int next() {
    const int index = next_;
    if (!counter_) {
      next_ += static_cast<int>(gridDim.x);
      return index;
    }
    if (index == blockIdx.x) wait_for_kernel_before();  // which has set the count to 0
    int taken = 0;
    if (threadIdx.x % 32 == 0) taken = atomicAdd(counter_, 1);
    next_ = static_cast<int>(gridDim.x) + __shfl_sync(kAllLanes, taken, 0);
    return index;
  }

 private:
  int* counter_;
  int next_;
};

}  // namespace xformers::cuda::sm90
