// Small passes around the attention kernels, memory-bound, one launch each.
#pragma once

#include <cuda_runtime_api.h>

#include "xformers/kernels/cuda/attention/bwd_args.h"
#include "xformers/kernels/cuda/attention/fwd_args.h"

namespace xformers::cuda {

// Packed layouts: rows of `tensor` (element type `dtype`) that belong to no sequence, and maybe others, become 0, those
// of lse -inf. To be called before the kernel that writes the rest.
enum class Rows { kQueries, kKeys };
void clear_uncovered(const HeadsTensor& tensor, DType dtype, int64_t dim, const AttentionShape& shape,
                     const SeqLayout& seq, Rows rows, cudaStream_t stream);
void clear_uncovered(const RowTensor& lse, const AttentionShape& shape, const SeqLayout& seq, cudaStream_t stream);

// -inf in args.lse_partial: what no block writes counts for nothing.
void clear_partial_lse(const FwdArgs& args, cudaStream_t stream);

// out and lse from the partial results of the splits (args.out_partial, args.lse_partial).
void merge_splits(const FwdArgs& args, cudaStream_t stream);

// args.lse and args.delta; lse is multiplied by `lse_factor`.
void prepare_backward(const BwdArgs& args, double lse_factor, cudaStream_t stream);

// Zeros in the whole bias gradient.
void clear_bias_gradient(const AttentionBwdParams& params, cudaStream_t stream);

}  // namespace xformers::cuda
