// The list of backward kernels, best first; the last one takes everything. And what they have in common.
#pragma once

#include "xformers/kernels/cuda/attention/bwd_args.h"
#include "xformers/kernels/cuda/attention/kernel_list.h"
#include "xformers/kernels/cuda/base/stream.h"

namespace xformers::cuda {

const KernelList<AttentionBwdParams>& backward_list();

// Bytes of one of the row statistics (lse, delta); both lie at the start of the workspace.
size_t statistics_bytes(const AttentionBwdParams& p);
BwdArgs backward_args(const AttentionBwdParams& p, const Stream& stream);

// What every backward does before its products; also zeros in `zero_bytes` from `zeros`.
void begin_backward(const BwdArgs& args, double lse_factor, const Stream& stream, void* zeros = nullptr,
                    size_t zero_bytes = 0);

}  // namespace xformers::cuda
