// Merging partial attention on the CPU: params/merge.h.
#pragma once

#include "xformers/kernels/cpu/base/parallel_for.h"
#include "xformers/kernels/params/merge.h"

namespace xformers::cpu {

void merge_forward(const MergeFwdParams& params, const Threads& threads);
void merge_backward(const MergeBwdParams& params, const Threads& threads);

}  // namespace xformers::cpu
