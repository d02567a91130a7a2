// fp32 products on tensor cores: a number is split into two TF32 numbers of 11 bits, x = big + small, and a product is
// big big + big small + small big; what is left out is 2^-22 of it. acc[16, 8] += a[16, 8] b[8, 8].
// A tensor core takes the first 11 bits of what a register holds and ignores the rest.
#pragma once

#include <cstdint>
#include <cute/arch/mma_sm80.hpp>

namespace xformers::cuda {

// `big` is rounded, so that `small` has either sign and its cut costs x at most one unit in the last place. (By
// integers: cvt.rna.tf32 takes twice as many instructions. NaN stays NaN in `small`.)
__device__ __forceinline__ void split_tf32(float x, uint32_t& big, uint32_t& small) {
  big = (__float_as_uint(x) + 0x1000u) & 0xffffe000u;
  small = __float_as_uint(x - __uint_as_float(big));
}
// The same in two instructions: `big` is left to the tensor core. `small`, then of the sign of x, would lose 0.9 units
// in the last place of x when cut, on average; 1.4 are added.
__device__ __forceinline__ void cut_tf32(float x, uint32_t& big, uint32_t& small) {
  constexpr float kNextAfterOne = 1 + 0x1p-23f;
  big = __float_as_uint(x);
  small = __float_as_uint(fmaf(x, kNextAfterOne, -__uint_as_float(big & 0xffffe000u)));
}

// A lane's part of an operand: kCount registers.
template <int kCount>
struct SplitTf32 {
  uint32_t big[kCount], small[kCount];

  __device__ __forceinline__ void set(int i, float x) { split_tf32(x, big[i], small[i]); }
  __device__ __forceinline__ void cut(int i, float x) { cut_tf32(x, big[i], small[i]); }
  __device__ __forceinline__ void set(const uint32_t (&x)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) set(i, __uint_as_float(x[i]));
  }
  __device__ __forceinline__ void cut(const uint32_t (&x)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) cut(i, __uint_as_float(x[i]));
  }
};

// Tensor cores cut sums off instead of rounding them. Small products are summed apart, so that they cost the large
// ones no bits, and sums are kept short: their owner adds them to longer ones in fp32.
struct SumTf32 {
  float main[4] = {}, rest[4] = {};

  __device__ __forceinline__ float operator[](int i) const { return main[i] + rest[i]; }
};

__device__ __forceinline__ void mma_tf32(float (&acc)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  cute::SM80_16x8x8_F32TF32TF32F32_TN::fma(acc[0], acc[1], acc[2], acc[3], a[0], a[1], a[2], a[3], b0, b1, acc[0],
                                           acc[1], acc[2], acc[3]);
}

// Column operand: registers kFirst and kFirst + 1 of b.
template <int kFirst, int kCount>
__device__ __forceinline__ void multiply(SumTf32& acc, const SplitTf32<4>& a, const SplitTf32<kCount>& b) {
  mma_tf32(acc.rest, a.small, b.big[kFirst], b.big[kFirst + 1]);
  mma_tf32(acc.main, a.big, b.big[kFirst], b.big[kFirst + 1]);
  mma_tf32(acc.rest, a.big, b.small[kFirst], b.small[kFirst + 1]);
}

}  // namespace xformers::cuda
