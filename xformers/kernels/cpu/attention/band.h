// Sequences and bands as the CPU's kernels count them, in 64 bits.
#pragma once

#include "xformers/kernels/params/band.h"

namespace xformers::cpu {

using Range = RangeOf<int64_t>;
using Sequence = SequenceOf<int64_t>;
using Band = BandOf<int64_t>;

XFORMERS_INLINE Sequence sequence_at(const AttentionShape& shape, const SeqLayout& layout, int64_t index) {
  return xformers::sequence_at<int64_t>(shape, layout, index);
}

}  // namespace xformers::cpu
