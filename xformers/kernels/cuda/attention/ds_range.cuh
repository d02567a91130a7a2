// dS beyond the range of fp16, in sums that are within it: where a tile's dS may be infinite, it is divided by a power
// of two for as long as it is summed up. Nothing of this is there for bf16, whose range is that of fp32.
#pragma once

#include <initializer_list>

#include "xformers/kernels/cuda/arch/copy.cuh"
#include "xformers/kernels/cuda/arch/mma.cuh"

namespace xformers::cuda {

template <class T>
inline constexpr bool kMayOverflow = std::is_same_v<T, __half>;
inline constexpr float kMostOfFp16 = 65504;

// This thread's largest |x| of a tile of fp16, as if what is not finite were kMostOfFp16; NaN counts for nothing.
template <int kThreads, int kBytes>
__device__ __forceinline__ float largest_of(const unsigned char (&tile)[kBytes], int thread = threadIdx.x) {
  __half2 most = {};
#pragma unroll 4
  for (int i = thread; i < kBytes / 16; i += kThreads) {
    const uint4 four = load_shared_16(shared_address(tile) + i * 16);
    for (const uint32_t pair : {four.x, four.y, four.z, four.w})
      most = __hmax2(most, __habs2(reinterpret_cast<const __half2&>(pair)));
  }
  return fminf(fmaxf(__low2float(most), __high2float(most)), kMostOfFp16);
}

// The power of two, at most 1, times which dS is in range, if it is at most `bound`.
__device__ __forceinline__ float factor_of(float bound) {
  if (bound < kMostOfFp16) return 1;
  const int exponent = min(static_cast<int>(__float_as_uint(bound) >> 23) - 127, 127) - 14;
  return __uint_as_float(static_cast<uint32_t>(127 - exponent) << 23);
}

// A packed pair times `factor`.
__device__ __forceinline__ uint32_t scale_pair(uint32_t pair, float factor) {
  const float2 both = unpack<__half>(pair);
  return pack<__half>(both.x * factor, both.y * factor);
}

}  // namespace xformers::cuda
