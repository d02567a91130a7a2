// When the decode kernel runs, and in how many parts it reads the keys. Plain C++.
#pragma once

#include "xformers/kernels/cuda/attention/kernel_list.h"
#include "xformers/kernels/cuda/base/stream.h"
#include "xformers/kernels/params/attention.h"

namespace xformers::cuda::decode {

void why_not(const AttentionFwdParams& p, Reasons& reasons);
size_t workspace(const AttentionFwdParams& p);
void run(const AttentionFwdParams& p, const Stream& stream);

}  // namespace xformers::cuda::decode
