// dS beyond the range of fp16, in sums that are within it: where a tile's may be infinite, dS of a step is multiplied
// by a power of two, which what it is summed up to is divided by. The factor is that of the largest dS there is in the
// step, so that rows of other sizes beside it keep their digits. Nothing of this is there for bf16, whose range is that
// of fp32.
#pragma once

#include <initializer_list>

#include "xformers/kernels/cuda/arch/copy.cuh"
#include "xformers/kernels/cuda/arch/mma.cuh"
#include "xformers/kernels/cuda/attention/fragment.cuh"

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

// At least every |dS|, which is P (|dout|_1 max|v| + |delta|); P is, but for rounding, at most `prob`. `dout`: of
// RowExtremes.
__device__ __forceinline__ float ds_bound(float dout, float v, float prob = 1) { return 2 * prob * dout * fmaxf(v, 1); }

// The largest |x| that is finite, of this lane's.
template <int kRowTiles, int kColumnTiles>
__device__ __forceinline__ float largest_finite(const Fragment<kRowTiles, kColumnTiles>& x) {
  float most = 0;
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float size = fabsf(x[r][n][i]);
        if (size < INFINITY) most = fmaxf(most, size);
      }
  return most;
}

// The power of two, at most 1, times which numbers up to `most` are in range.
__device__ __forceinline__ float factor_of(float most) {
  if (most < kMostOfFp16) return 1;
  const int exponent = min(static_cast<int>(__float_as_uint(most) >> 23) - 127, 127) - 14;
  return __uint_as_float(static_cast<uint32_t>(127 - exponent) << 23);
}

// A packed pair times `factor`.
__device__ __forceinline__ uint32_t scale_pair(uint32_t pair, float factor) {
  const float2 both = unpack<__half>(pair);
  return pack<__half>(both.x * factor, both.y * factor);
}

}  // namespace xformers::cuda
