// Bias, activation, dropout and residual in one pass on the CPU. Results do not depend on the number of threads.
#pragma once

#include "xformers/kernels/cpu/base/parallel_for.h"
#include "xformers/kernels/params/bias_act_dropout.h"

namespace xformers::cpu {

void bias_act_dropout_forward(const BiasActDropoutFwdParams& params, const Threads& threads);
void bias_act_dropout_backward(const BiasActDropoutBwdParams& params, const Threads& threads);

}  // namespace xformers::cpu
