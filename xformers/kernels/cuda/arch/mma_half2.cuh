// fp32 products on tensor cores by halves: x = big + small, two fp16 numbers, which leaves out 2^-23 of x or 2^-25,
// whichever is more: numbers are first scaled, so that the largest that meet are near the end of fp16's range.
// A product is small big + big small + big big; what is left out is 2^-22 of it. acc[16, 8] += a[16, 16] b[16, 8].
#pragma once

#include "xformers/kernels/cuda/arch/mma.cuh"

namespace xformers::cuda {

// Two numbers as one register of either half, x in the low bits.
__device__ __forceinline__ void split_halves(float x, float y, uint32_t& big, uint32_t& small) {
  big = pack<__half>(x, y);
  const float2 taken = unpack<__half>(big);
  small = pack<__half>(x - taken.x, y - taken.y);
}

// A lane's part of the operand a, or of two operands b.
struct Halves {
  uint32_t big[4], small[4];
};

// Accumulators of columns 0-7 and 8-15 as an operand.
__device__ __forceinline__ Halves to_halves(const float (&left)[4], const float (&right)[4]) {
  Halves a;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    split_halves(left[2 * i], left[2 * i + 1], a.big[i], a.small[i]);
    split_halves(right[2 * i], right[2 * i + 1], a.big[2 + i], a.small[2 + i]);
  }
  return a;
}

__device__ __forceinline__ void mma_halves(float (&acc)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  mma<__half>(acc, a, b0, b1);
}

}  // namespace xformers::cuda
