// Linear attention on the CPU. Results do not depend on the number of threads.
#pragma once

#include "xformers/kernels/cpu/base/parallel_for.h"
#include "xformers/kernels/params/linear_attention.h"

namespace xformers::cpu {

void linear_attention_forward(const LinearAttentionFwdParams& params, const Threads& threads);
void linear_attention_backward(const LinearAttentionBwdParams& params, const Threads& threads);

}  // namespace xformers::cpu
