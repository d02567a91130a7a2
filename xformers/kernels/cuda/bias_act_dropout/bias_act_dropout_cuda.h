// Bias, activation, dropout and residual in one pass on CUDA: on the given stream, without waiting for it. Plain C++.
#pragma once

#include <cstddef>

#include "xformers/kernels/cuda/base/stream.h"
#include "xformers/kernels/params/bias_act_dropout.h"

namespace xformers::cuda {

void bias_act_dropout_forward(const BiasActDropoutFwdParams& params, const Stream& stream);

// dbias has the same bits from run to run.
void bias_act_dropout_backward(const BiasActDropoutBwdParams& params, const Stream& stream);
size_t bias_act_dropout_backward_workspace(const BiasActDropoutBwdParams& params);  // bytes

}  // namespace xformers::cuda
