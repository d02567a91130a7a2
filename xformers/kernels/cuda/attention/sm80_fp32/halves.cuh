// A tile of fp32 elements in shared memory, split in place once it has arrived: each row becomes its big halves and
// behind them its small ones (mma_half2.cuh), and warps that share the tile split nothing. Rows are copied as those of
// tile.cuh are, a thread splits the chunks that it has copied, and rows belong to one warp.
//
// Elements are scaled by a power of two, which serves rows whose largest element is then from 2^-3 to 2^15. Others have
// a scale of their own, and whoever multiplies them is told that there are such rows: the ratio of the usual scale to
// theirs is to be made good. Rows of zeros have the ratio 0, so that no scale has to suit them.
#pragma once

#include "xformers/kernels/cuda/arch/mma_half2.cuh"
#include "xformers/kernels/cuda/attention/sm80_fp32/tile.cuh"

namespace xformers::cuda::sm80_fp32 {

inline constexpr float kUsualScale = 2048;  // for rows whose largest element is from 2^-14 to 2^4

// A power of two that takes x > 0 to [2^exponent, 2^(exponent + 1)), as far as it and its inverse are normal numbers.
__device__ __forceinline__ float scale_to(float x, int exponent) {
  const int biased = 254 + exponent - static_cast<int>(__float_as_uint(x) >> 23);
  return __uint_as_float(static_cast<uint32_t>(min(max(biased, 1), 253)) << 23);
}
__device__ __forceinline__ float inverse_power(float power) {
  return __uint_as_float((254u << 23) - __float_as_uint(power));
}

template <int kRows, int kDim, int kThreads>
class HalvesTile {
  using Layout = TileLayout<kDim>;
  static constexpr int kLanes = Layout::kChunks, kStep = kThreads / kLanes;
  static constexpr int kBatch = kRows / kStep < 4 ? kRows / kStep : 4;  // rows of a thread at a time
  static constexpr uint32_t kAllLanes = 0xffffffffu;
  static_assert(32 % kLanes == 0 && kStep % 4 == 0 && kRows % (kStep * kBatch) == 0);

 public:
  float largest = 0;  // element of this warp's rows, where they are not all of usual size; or 0

  // Whether any row of this thread has a ratio other than 1; ratios: [kRows].
  __device__ __forceinline__ bool split(uint32_t tile, float* ratios, float usual_scale = kUsualScale) {
    const int chunk = threadIdx.x % kLanes, first_row = threadIdx.x / kLanes;
    largest = 0;
    bool unusual = false;
    const uint32_t elements = tile + Layout::offset(first_row, chunk);
    const uint32_t halves = tile + Layout::offset(first_row, chunk / 2) + chunk % 2 * 8;
#pragma unroll 1
    for (int row = 0; row < kRows; row += kStep * kBatch) {
      const uint32_t bytes = row * Layout::kRowBytes;
      unusual |= split_batch(elements + bytes, halves + bytes, ratios + first_row + row, usual_scale);
    }
    return unusual;
  }

 private:
  static __device__ __forceinline__ uint32_t next_row(uint32_t address, int i) {
    return (address ^ i * kStep % 8 * 16) + i * kStep * Layout::kRowBytes;
  }
  static __device__ __forceinline__ float largest_of(float4 x) {
    return fmaxf(fmaxf(fabsf(x.x), fabsf(x.y)), fmaxf(fabsf(x.z), fabsf(x.w)));
  }

  // Infinite numbers stay what they are at any scale, which is to suit the others.
  static __device__ __forceinline__ float largest_finite(float4 x) {
    const auto finite = [](float x) { return fabsf(x) < INFINITY ? x : 0.0f; };
    return largest_of({finite(x.x), finite(x.y), finite(x.z), finite(x.w)});
  }
  static __device__ __forceinline__ float largest_of_row(float x) {
#pragma unroll
    for (int step = kLanes / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, step));
    return x;
  }

  __device__ __forceinline__ bool split_batch(uint32_t elements, uint32_t halves, float* ratios, float usual_scale) {
    const uint32_t row_lanes = kAllLanes >> (32 - kLanes) << threadIdx.x % 32 / kLanes * kLanes % 32;
    const float low = inverse_power(usual_scale) * 0x1p-3f, high = inverse_power(usual_scale) * 0x1p15f;
    float4 x[kBatch];
    float scale[kBatch];
    bool zero[kBatch] = {}, usual = true, unusual = false;
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const uint4 bits = load_shared_16(next_row(elements, i));
      x[i] = {__uint_as_float(bits.x), __uint_as_float(bits.y), __uint_as_float(bits.z), __uint_as_float(bits.w)};
      const float here = largest_of(x[i]);
      const uint32_t large = __ballot_sync(kAllLanes, here >= low) & row_lanes;
      usual = usual && here <= high && large != 0;
      scale[i] = usual_scale;
    }
    if (!__all_sync(kAllLanes, usual)) {
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const float of_row = largest_of_row(largest_finite(x[i]));
        largest = fmaxf(largest, of_row);
        zero[i] = of_row == 0;
        if (zero[i] || (of_row >= low && of_row <= high)) continue;
        scale[i] = scale_to(of_row, 14);
        unusual = true;
      }
      if constexpr (kLanes == 16) largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 16));
    }
    if (threadIdx.x % kLanes == 0) {
#pragma unroll
      for (int i = 0; i < kBatch; ++i) ratios[i * kStep] = zero[i] ? 0 : usual_scale * inverse_power(scale[i]);
    }
    __syncwarp();  // what is overwritten has been read
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      uint2 big, small;
      split_halves(x[i].x * scale[i], x[i].y * scale[i], big.x, small.x);
      split_halves(x[i].z * scale[i], x[i].w * scale[i], big.y, small.y);
      store_shared_8(next_row(halves, i), big);
      store_shared_8(next_row(halves, i) + 2 * kDim, small);
    }
    return unusual;
  }
};

// Operands are addressed by a lane's part, which a loop computes once, and constants. The small halves of a row are
// kDim / 8 chunks behind its big ones.
template <int kDim>
__device__ __forceinline__ uint32_t lane_a(uint32_t tile, int lane = threadIdx.x % 32) {
  return tile + TileLayout<kDim>::offset(lane & 15, lane >> 4);
}
// `row` (a multiple of 8) rows and `chunk` chunks on.
template <int kDim>
__device__ __forceinline__ uint32_t advance(uint32_t lane, int row, int chunk) {
  return (lane ^ (chunk % 8 * 16)) + row * TileLayout<kDim>::kRowBytes + chunk / 8 * 128;
}

// The lane's part of a tile whose rows are columns of the operand b.
template <int kDim>
__device__ __forceinline__ uint32_t lane_b(uint32_t tile, int lane = threadIdx.x % 32) {
  return tile + TileLayout<kDim>::offset(lane % 8 + lane / 16 * 8, lane / 8 % 2);
}

// Rows of the tile from `row`, 16 of them, and its columns from column16 * 16. Of lane_a: an operand a; of lane_b: two
// operands b [16, 8], one beside the other, in registers 0 and 1, 2 and 3.
template <int kDim>
__device__ __forceinline__ Halves load_halves(uint32_t lane, int row, int column16) {
  Halves x;
  load_matrices(x.big, advance<kDim>(lane, row, 2 * column16));
  load_matrices(x.small, advance<kDim>(lane, row, 2 * column16 + kDim / 8));
  return x;
}
// Of lane_a: two operands b whose rows and columns are those of the tile.
template <int kDim>
__device__ __forceinline__ Halves load_halves_transposed(uint32_t lane, int row, int column16) {
  Halves x;
  load_matrices_transposed(x.big, advance<kDim>(lane, row, 2 * column16));
  load_matrices_transposed(x.small, advance<kDim>(lane, row, 2 * column16 + kDim / 8));
  return x;
}

}  // namespace xformers::cuda::sm80_fp32
