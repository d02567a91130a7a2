// How the forward kernels on tensor cores part the keys where row tiles alone don't fill the GPU. Plain C++.
#pragma once

#include "xformers/kernels/cuda/attention/facts.h"
#include "xformers/kernels/params/attention.h"

namespace xformers::cuda {

// A part is so many neighbouring steps (blocks of keys) of what a row tile sees: tiles that see little have few parts.
struct SplitPlan {
  int64_t splits = 1;  // parts of the tile that sees most
  int part_steps = 0;  // 0: every tile's steps in `splits` equal parts
};

// `head_dim`: of the instance.
SplitPlan plan_splits(const AttentionFwdParams& p, const FwdFacts& facts, int head_dim, Features features);

// Packed sequences that fill less than a row tile in the mean: their tiles would be mostly empty, or too many. Keys
// must lie as queries do, one sequence behind the other, and be few: a tile reads those of all its sequences.
bool has_short_sequences(const AttentionFwdParams& p, const FwdFacts& facts, int head_dim, Features features);

}  // namespace xformers::cuda
