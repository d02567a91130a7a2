// The passes around kernels whose keys are split: args.stats_partial and args.out_partial hold what each part has left.
#pragma once

#include <cuda_runtime_api.h>

#include "xformers/kernels/cuda/attention/fwd_args.h"

namespace xformers::cuda {

// Packed layouts, before the parts: rows that no sequence covers have seen no key.
void clear_partial_stats(const FwdArgs& args, cudaStream_t stream);

// out, lse and lse_low from the parts' results. few_rows: eight warps share a row, where rows alone would not fill the
// GPU.
void merge_splits(const FwdArgs& args, bool few_rows, cudaStream_t stream);

}  // namespace xformers::cuda
