// When fp32 on tensor cores runs, and with what arguments. Plain C++.
#pragma once

#include "xformers/kernels/cuda/attention/kernel_list.h"
#include "xformers/kernels/cuda/base/stream.h"
#include "xformers/kernels/params/attention.h"

namespace xformers::cuda::sm80_fp32 {

void why_not_forward(const AttentionFwdParams& p, Reasons& reasons);
void run_forward(const AttentionFwdParams& p, const Stream& stream);

void why_not_backward(const AttentionBwdParams& p, Reasons& reasons);
size_t backward_workspace(const AttentionBwdParams& p);
void run_backward(const AttentionBwdParams& p, const Stream& stream);

}  // namespace xformers::cuda::sm80_fp32
