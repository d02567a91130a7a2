// Small passes around the attention kernels, memory-bound, one launch each.
#pragma once

#include <cuda_runtime_api.h>

#include "xformers/kernels/params/attention.h"

namespace xformers::cuda {

// Packed layouts: rows that belong to no sequence, and maybe others, become 0 (lse: -inf). To be called before the
// kernel that writes the rest; nothing where sequences are not packed.
void clear_uncovered_results(const AttentionFwdParams& p, cudaStream_t stream);
void clear_uncovered_gradients(const AttentionBwdParams& p, cudaStream_t stream);

}  // namespace xformers::cuda
