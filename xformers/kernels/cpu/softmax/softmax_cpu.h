// Softmax and its logarithm on the CPU. Results do not depend on the number of threads.
#pragma once

#include "xformers/kernels/cpu/base/parallel_for.h"
#include "xformers/kernels/params/softmax.h"

namespace xformers::cpu {

void softmax_forward(const SoftmaxFwdParams& params, const Threads& threads);
void softmax_backward(const SoftmaxBwdParams& params, const Threads& threads);

}  // namespace xformers::cpu
