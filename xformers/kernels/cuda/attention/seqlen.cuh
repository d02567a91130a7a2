// Sequences as the CUDA kernels count them, in 32 bits.
#pragma once

#include <cstdint>

#include "xformers/kernels/params/sequence.h"

namespace xformers::cuda {

template <class Integer>
__host__ __device__ constexpr Integer ceil_div(Integer a, Integer b) {
  return (a + b - 1) / b;
}

inline constexpr int64_t kMaxSeqlen = kMaxSeqlenOf<int>;
using Sequence = SequenceOf<int>;

__device__ __forceinline__ Sequence sequence_at(const AttentionShape& shape, const SeqLayout& layout, int64_t index) {
  return xformers::sequence_at<int>(shape, layout, index);
}

}  // namespace xformers::cuda
