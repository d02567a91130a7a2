// 1 / (1 + exp(-x)), as exact as T shows.
#pragma once

#include "xformers/kernels/cuda/arch/fast_math.cuh"
#include "xformers/kernels/cuda/base/vector.cuh"

namespace xformers::cuda {

template <class T>
__device__ __forceinline__ Compute<T> sigmoid(Compute<T> x) {
  if constexpr (sizeof(T) == 8) return __drcp_rn(1 + exp(-x));
  if constexpr (sizeof(T) == 4) return __frcp_rn(1 + expf(-x));
  return fast_reciprocal(1.0f + fast_exp2(-1.44269504f * x));
}

}  // namespace xformers::cuda
