// SwiGLU's gate on CUDA: on the given stream, without waiting for it. Plain C++.
#pragma once

#include <cstddef>

#include "xformers/kernels/cuda/base/stream.h"
#include "xformers/kernels/params/gate.h"

namespace xformers::cuda {

void gate_forward(const GateFwdParams& params, const Stream& stream);

// dx1 and dx2 may lie on x1 and x2, h on dh, each exactly. sums [2, width], of params.dtype: dx1 and dx2 summed over
// the rows before they are rounded, with the same bits from run to run; nullptr: not wanted.
void gate_backward(const GateBwdParams& params, void* sums, const Stream& stream);
size_t gate_backward_workspace(const GateBwdParams& params, bool sums);  // bytes

}  // namespace xformers::cuda
