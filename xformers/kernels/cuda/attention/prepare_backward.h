// Small passes before the backward's products, memory-bound, one launch each.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "xformers/kernels/cuda/attention/bwd_args.h"

namespace xformers::cuda {

// args.lse and args.delta: (lse + lse_low) * lse_factor - args.lse_shift, delta * args.delta_factor. Zeros in
// `zero_bytes` from `zeros`, multiples of 16. Where tiles span sequences, which queries see a key and which tiles a
// block of queries.
void prepare_backward(const BwdArgs& args, double lse_factor, void* zeros, size_t zero_bytes, cudaStream_t stream);

// Zeros in the whole bias gradient.
void clear_bias_gradient(const AttentionBwdParams& params, cudaStream_t stream);

}  // namespace xformers::cuda
