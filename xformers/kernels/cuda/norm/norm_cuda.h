// RMS and layer normalisation on the GPU. Plain C++; a call enqueues its kernels and does not wait.
#pragma once

#include <cstddef>

#include "xformers/kernels/cuda/base/stream.h"
#include "xformers/kernels/params/norm.h"

namespace xformers::cuda {

void norm_forward(const NormFwdParams& params, const Stream& where);

size_t norm_backward_workspace(const NormBwdParams& params);
void norm_backward(const NormBwdParams& params, const Stream& where);

}  // namespace xformers::cuda
