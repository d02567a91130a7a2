// Merging partial attention on NVIDIA GPUs: params/merge.h; pointers of tensors are device memory, `parts` and `grads`
// lie on the host. Plain C++.
#pragma once

#include <cstddef>

#include "xformers/kernels/cuda/base/stream.h"
#include "xformers/kernels/params/merge.h"

namespace xformers::cuda {

// Bytes of scratch memory: none, but for more parts than a kernel's arguments hold.
size_t merge_workspace(const MergeFwdParams& params);
size_t merge_workspace(const MergeBwdParams& params);

void merge_forward(const MergeFwdParams& params, const Stream& stream);
void merge_backward(const MergeBwdParams& params, const Stream& stream);

}  // namespace xformers::cuda
