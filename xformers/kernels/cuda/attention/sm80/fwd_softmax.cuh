// Online softmax of a warp's rows (Milakov & Gimelshein 2018).
#pragma once

#include "xformers/kernels/cuda/arch/mma.cuh"
#include "xformers/kernels/cuda/attention/sm80/fwd_tile.cuh"

namespace xformers::cuda::sm80 {

template <FwdPolicy kPolicy>
class OnlineSoftmax {
  using Part = WarpPart<kPolicy>;
  static constexpr int kRowTiles = Part::kRowTiles;
  static constexpr unsigned kAll = 0xffffffffu;

 public:
  // `smem`: one float per row of every warp, where warps share rows.
  __device__ __forceinline__ OnlineSoftmax(const Part& warp, uint32_t smem) : warp_(warp), smem_(smem) {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half) max_[r][half] = -INFINITY, sum_[r][half] = 0;
  }

  // Scores, in units of 1 / scale binary orders, become probabilities relative to max, a score near the running
  // maximum: output and sum are rescaled only where the maximum has grown by more than a factor of 2^8, which numbers
  // in fp32 and the 16-bit types have room for.
  __device__ __forceinline__ void apply(typename Part::Scores& s, typename Part::Output& out, float scale) {
    constexpr float kRoom = 8;
    float largest[kRowTiles][2];
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float m = max_[r][half];
#pragma unroll
        for (int n = 0; n < Part::kKeyTiles; ++n) m = fmaxf(m, fmaxf(s[r][n][half * 2], s[r][n][half * 2 + 1]));
        m = fmaxf(m, __shfl_xor_sync(kAll, m, 1));
        largest[r][half] = fmaxf(m, __shfl_xor_sync(kAll, m, 2));
      }
    }
    if constexpr (kPolicy.sharers > 1) {
      float other[kRowTiles][2];
      exchange(other, largest);
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
        for (int half = 0; half < 2; ++half) largest[r][half] = fmaxf(largest[r][half], other[r][half]);
    }
    bool grown = false;
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        grown |= largest[r][half] * scale > max_[r][half] * scale + kRoom;
      }
    if (__any_sync(kAll, grown)) rescale(largest, out, scale);
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float from = origin(max_[r][half]) * scale;
        float sum = 0;
#pragma unroll
        for (int n = 0; n < Part::kKeyTiles; ++n) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            float& at = s[r][n][half * 2 + i];
            at = fast_exp2(fmaf(at, scale, -from));
            sum += at;
          }
        }
        sum_[r][half] += sum;
      }
    }
  }

  // Sums over all keys; after this the state is done.
  __device__ __forceinline__ void finish() {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        sum_[r][half] += __shfl_xor_sync(kAll, sum_[r][half], 1);
        sum_[r][half] += __shfl_xor_sync(kAll, sum_[r][half], 2);
      }
    }
    if constexpr (kPolicy.sharers > 1) {
      float other[kRowTiles][2];
      exchange(other, sum_);
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
        for (int half = 0; half < 2; ++half) sum_[r][half] += other[r][half];
    }
  }
  __device__ __forceinline__ float sum(int r, int half) const { return sum_[r][half]; }
  // Natural log-sum-exp.
  __device__ __forceinline__ float lse(int r, int half, float scale) const {
    constexpr float kLn2 = 0.6931471805599453f;
    return sum_[r][half] == 0 ? -INFINITY : (max_[r][half] * scale + __log2f(sum_[r][half])) * kLn2;
  }

 private:
  // A row that has seen no key keeps -inf; -inf minus itself would be NaN, so it is treated as 0.
  static __device__ __forceinline__ float origin(float maximum) { return maximum == -INFINITY ? 0.0f : maximum; }

  __device__ __forceinline__ void rescale(const float (&largest)[kRowTiles][2], typename Part::Output& out,
                                          float scale) {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float shrink = fast_exp2(max_[r][half] * scale - origin(largest[r][half]) * scale);
        max_[r][half] = largest[r][half];
        sum_[r][half] *= shrink;
#pragma unroll
        for (int d = 0; d < Part::kDimTiles; ++d) {
          out[r][d][half * 2] *= shrink;
          out[r][d][half * 2 + 1] *= shrink;
        }
      }
    }
  }

  // The same statistics of the warp that shares the rows: lane j of each four writes one, and reads the other's four.
  __device__ __forceinline__ void exchange(float (&other)[kRowTiles][2], const float (&mine)[kRowTiles][2]) {
    static_assert(kPolicy.sharers == 1 || (kPolicy.sharers == 2 && kRowTiles == 2));
    const int lane = threadIdx.x % 32, j = lane % 4;
    const auto place = [&](int warp, int r, int half) {
      return smem_ + 4 * (warp * kPolicy.warp_rows() + (r * 2 + half) * 8 + lane / 4);
    };
    const float low = j % 2 ? mine[0][1] : mine[0][0], high = j % 2 ? mine[1][1] : mine[1][0];
    store_shared_4(place(warp_.warp, j / 2, j % 2), __float_as_uint(j < 2 ? low : high));
    sync_sharers<kPolicy>(warp_);
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        other[r][half] = __uint_as_float(load_shared_4(place(warp_.warp ^ 1, r, half)));
      }
  }

  const Part& warp_;
  uint32_t smem_;
  float max_[kRowTiles][2], sum_[kRowTiles][2];  // of scores; this lane's and warp's part of the sum
};

}  // namespace xformers::cuda::sm80
