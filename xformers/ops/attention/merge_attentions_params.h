// What the merge operators do on every device that has kernels: check, allocate the results, hand pointers and strides
// to a kernel. A device's file (merge_attentions_cpu.cpp) only says which kernel that is.
#pragma once

#include <c10/util/FunctionRef.h>

#include "xformers/kernels/params/merge.h"
#include "xformers/ops/attention/merge_attentions_op.h"

namespace xformers::ops {

std::tuple<at::Tensor, at::Tensor> run_merge(at::TensorList attn, at::TensorList lse, bool write_lse,
                                             std::optional<at::ScalarType> out_dtype,
                                             c10::function_ref<void(const MergeFwdParams& params)> kernel);

MergeGradients run_merge_backward(const at::Tensor& grad_out, const std::optional<at::Tensor>& grad_lse,
                                  at::TensorList attn, at::TensorList lse,
                                  c10::function_ref<void(const MergeBwdParams& params)> kernel);

}  // namespace xformers::ops
