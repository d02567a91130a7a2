// Which elements survive dropout: the matrix stream of base/philox.h, one call per eight neighbouring columns.
#pragma once

#include "xformers/kernels/base/philox.h"
#include "xformers/kernels/cuda/arch/bits.cuh"
#include "xformers/kernels/cuda/base/vector.cuh"
#include "xformers/kernels/params/dropout.h"

namespace xformers::cuda {

// Prepared on the host.
struct RowDropout {
  static constexpr uint32_t kHalfInfinity = 0x7c00;

  uint64_t seed, offset;
  const uint64_t* device_state;  // seed and offset, in place of the two above
  bool active, all;              // anything is dropped, everything is
  bool pairwise;                 // draws may be compared two at a time
  uint32_t threshold;            // in the upper half, as draws are compared
  double scale;                  // of what is kept

  explicit RowDropout(const Dropout& dropout)
      : seed(dropout.philox_seed),
        offset(dropout.philox_offset),
        device_state(dropout.device_state),
        active(dropout.p > 0),
        all(dropout.p >= 1),
        pairwise(drop_threshold(dropout.p) <= kHalfInfinity),
        threshold(drop_threshold(dropout.p) << 16),
        scale(dropout.p < 1 ? 1 / (1 - dropout.p) : 0) {}

  // Philox's key in two steps: what is loaded from memory is not waited for at once.
  struct State {
    uint64_t seed, offset;
    __device__ __forceinline__ PhiloxKey key() const { return philox_key(seed, offset); }
  };
  __device__ __forceinline__ State state() const {
    State state{seed, offset};
    if (device_state) state = {device_state[0], device_state[1]};
    return state;
  }

  // Columns [column, column + kCount) of a row, kCount a divisor of 8 and of column: zero where dropped.
  template <class C, int kCount>
  __device__ __forceinline__ void apply(const PhiloxKey& key, int64_t row, int64_t column, C (&values)[kCount]) const {
    const PhiloxWords drawn = row_dropout_draws(key, static_cast<uint64_t>(row), static_cast<uint32_t>(column / 8));
    constexpr int kWords = (kCount + 1) / 2;
    uint32_t words[kWords];
    const int first = static_cast<int>(column % 8) / 2;
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      words[i] = drawn.word[i];
#pragma unroll
      for (int j = kWords; j + i < 4; j += kWords) words[i] = first == j ? drawn.word[j + i] : words[i];
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const bool upper = kCount > 1 ? i % 2 != 0 : column % 2 != 0;
      values[i] = keeps(upper ? words[i / 2] : words[i / 2] << 16) ? values[i] : C(0);
    }
  }

  // The same for eight packed elements of 16 bits.
  template <class T>
  __device__ __forceinline__ void apply(const PhiloxKey& key, int64_t row, int64_t column, Packed<T, 8>& values) const {
    const PhiloxWords drawn = row_dropout_draws(key, static_cast<uint64_t>(row), static_cast<uint32_t>(column / 8));
    auto& pairs = reinterpret_cast<uint32_t(&)[4]>(values);
    if (pairwise) {
#pragma unroll
      for (int i = 0; i < 4; ++i) pairs[i] &= kept_pair(drawn.word[i]);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        pairs[i] &= (keeps(drawn.word[i] << 16) ? 0xffffu : 0u) | (keeps(drawn.word[i]) ? 0xffff0000u : 0u);
      }
    }
  }

 private:
  // By a draw in the upper half; what lies below it decides nothing.
  __device__ __forceinline__ bool keeps(uint32_t draw) const { return draw >= threshold && !all; }

  // A mask of 16 bits for each of two draws: kept are those with the highest bit, and those whose other bits, as a half
  // float, reach the threshold. Nothing is less than a NaN here, and nothing is dropped above infinity.
  __device__ __forceinline__ uint32_t kept_pair(uint32_t draws) const {
    const uint32_t both = threshold | threshold >> 16;
    const uint32_t high = sign_of_halves(draws);
    return high |
           __hgeu2_mask(__habs2(reinterpret_cast<const __half2&>(draws)), reinterpret_cast<const __half2&>(both));
  }
};

}  // namespace xformers::cuda
