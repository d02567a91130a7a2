// The arguments that families have in common, and where they lie in the workspace. Plain C++.
#pragma once

#include <cuda_runtime_api.h>

#include "xformers/kernels/cuda/attention/bwd_args.h"
#include "xformers/kernels/cuda/attention/facts.h"
#include "xformers/kernels/cuda/attention/fwd_args.h"
#include "xformers/kernels/cuda/base/stream.h"

namespace xformers::cuda {

inline constexpr double kLog2eDouble = 1.4426950408889634074;

inline cudaStream_t to_stream(const Stream& stream) { return static_cast<cudaStream_t>(stream.stream); }

// Without, and with what depends on how tensors lie.
FwdArgs forward_args(const AttentionFwdParams& p);
FwdArgs forward_args(const AttentionFwdParams& p, const FwdFacts& facts);

// Partial results of `splits` parts of the keys: their bytes, and where `args` finds them.
size_t partial_bytes(const AttentionFwdParams& p, int64_t total_rows, int64_t splits);
void set_partial_results(FwdArgs& args, int64_t total_rows, int64_t splits, const Stream& stream);

// Bytes of one of the row statistics (lse, delta); both lie at the start of a backward's workspace.
size_t statistics_bytes(const AttentionBwdParams& p);
BwdArgs backward_args(const AttentionBwdParams& p, const Stream& stream);
// What dropout makes of the statistics, where the products count on that.
void set_drop_factors(BwdArgs& args);

// What every backward does before its products; also zeros in `zero_bytes` from `zeros`.
void begin_backward(const BwdArgs& args, double lse_factor, const Stream& stream, void* zeros = nullptr,
                    size_t zero_bytes = 0);

}  // namespace xformers::cuda
