// Linear attention on the CPU. Results depend on the number of threads only where there are fewer heads of sequences
// than threads: their tokens are then cut into parts, whose states are added up.
#pragma once

#include "xformers/kernels/cpu/base/parallel_for.h"
#include "xformers/kernels/params/linear_attention.h"

namespace xformers::cpu {

void linear_attention_forward(const LinearAttentionFwdParams& params, const Threads& threads);
void linear_attention_backward(const LinearAttentionBwdParams& params, const Threads& threads);

}  // namespace xformers::cpu
