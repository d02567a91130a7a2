// Softmax and its logarithm on the GPU. Plain C++; a call enqueues one kernel and does not wait.
#pragma once

#include "xformers/kernels/cuda/base/stream.h"
#include "xformers/kernels/params/softmax.h"

namespace xformers::cuda {

void softmax_forward(const SoftmaxFwdParams& params, const Stream& where);
void softmax_backward(const SoftmaxBwdParams& params, const Stream& where);

}  // namespace xformers::cuda
