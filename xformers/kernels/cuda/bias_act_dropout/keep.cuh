// Which elements survive dropout: the matrix stream of base/philox.h, one call per eight neighbouring columns.
#pragma once

#include "xformers/kernels/base/philox.h"
#include "xformers/kernels/params/dropout.h"

namespace xformers::cuda {

// Prepared on the host.
struct RowDropout {
  uint64_t seed, offset;
  const uint64_t* device_state;  // seed and offset, in place of the two above
  bool active, all;              // anything is dropped, everything is
  uint32_t threshold;            // in the upper half, as draws are compared
  float scale;                   // of what is kept
  double scale64;

  explicit RowDropout(const Dropout& dropout)
      : seed(dropout.philox_seed),
        offset(dropout.philox_offset),
        device_state(dropout.device_state),
        active(dropout.p > 0),
        all(dropout.p >= 1),
        threshold(drop_threshold(dropout.p) << 16),
        scale64(dropout.p < 1 ? 1 / (1 - dropout.p) : 0) {
    scale = static_cast<float>(scale64);
  }

  __device__ __forceinline__ PhiloxKey key() const {
    return device_state ? philox_key(device_state[0], device_state[1]) : philox_key(seed, offset);
  }

  // Columns [column, column + kCount) of a row, kCount a divisor of 8 and of column: scaled where kept, else zero.
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
    const C factor = sizeof(C) == 8 ? static_cast<C>(scale64) : static_cast<C>(scale);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      // A draw in the lower half is moved up; below one in the upper half lies what decides nothing.
      const bool upper = kCount > 1 ? i % 2 != 0 : column % 2 != 0;
      const uint32_t draw = upper ? words[i / 2] : words[i / 2] << 16;
      values[i] = draw >= threshold && !all ? values[i] * factor : C(0);
    }
  }
};

}  // namespace xformers::cuda
