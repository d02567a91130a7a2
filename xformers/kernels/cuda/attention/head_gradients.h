// Gradients of which each sequence and head has one number: of ALiBi's slopes and of sinks. Sums in a fixed order: the
// same bits from run to run.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "xformers/kernels/cuda/attention/bwd_args.h"

namespace xformers::cuda {

// args.slope_parts: their bytes, a multiple of 256, 0 where no gradient of slopes is wanted; parts per (batch row,
// head). set_slope_parts lets `args` use `memory` for them.
size_t slope_part_bytes(const AttentionBwdParams& p, int64_t parts);
void set_slope_parts(BwdArgs& args, int64_t parts, void* memory);

// dslopes out of args.slope_parts, when all of them are written; nothing where it is not wanted.
void sum_slope_parts(const BwdArgs& args, cudaStream_t stream);

// dsinks out of args.delta and lse.
void sum_sink_gradients(const BwdArgs& args, cudaStream_t stream);

}  // namespace xformers::cuda
