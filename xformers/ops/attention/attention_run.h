// What the attention operators do on every device: check, allocate the results, hand pointers and strides to a kernel.
// A device's file (attention_cpu.cpp) only says which kernel that is. Nothing here waits for a device: offsets and
// pages are read on the CPU alone.
#pragma once

#include <c10/util/FunctionRef.h>

#include "xformers/kernels/params/attention.h"
#include "xformers/ops/attention/attention_op.h"

namespace xformers::ops {

using ForwardKernel = c10::function_ref<void(const AttentionFwdParams& params)>;
using BackwardKernel = c10::function_ref<void(const AttentionBwdParams& params)>;

// The kernel is called once, or not at all where there is no query. The arguments of run_forward are left in the form
// that kernels take.
AttentionResult run_forward(AttentionArgs& args, ForwardKernel kernel);
AttentionGradients run_backward(const AttentionGradArgs& args, BackwardKernel kernel);
AttentionStackedGradients run_backward_stacked(const AttentionBackwardStacked& args, BackwardKernel kernel);

}  // namespace xformers::ops
