// RMS and layer normalisation on the CPU. Results do not depend on the number of threads.
#pragma once

#include "xformers/kernels/cpu/base/parallel_for.h"
#include "xformers/kernels/params/norm.h"

namespace xformers::cpu {

void norm_forward(const NormFwdParams& params, const Threads& threads);
void norm_of_sum(const NormOfSumParams& params, const Threads& threads);
void norm_backward(const NormBwdParams& params, const Threads& threads);

}  // namespace xformers::cpu
