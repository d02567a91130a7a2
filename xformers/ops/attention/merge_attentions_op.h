// The merge operators as typed functions, what both check, and their results without data.
#pragma once

#include "xformers/ops/attention/merge_attentions.h"

namespace xformers::ops {

// Gradients of attn and of lse, each stacked: [parts, ...].
using MergeGradients = std::tuple<at::Tensor, at::Tensor>;
MergeGradients merge_attentions_backward(const at::Tensor& grad_out, const std::optional<at::Tensor>& grad_lse,
                                         at::TensorList attn, at::TensorList lse);

void check_merge(at::TensorList attn, at::TensorList lse, std::optional<at::ScalarType> out_dtype);
void check_merge_gradients(const at::Tensor& grad_out, const std::optional<at::Tensor>& grad_lse, at::TensorList attn,
                           at::TensorList lse);

// What the results are like: of `out`; [parts, sizes of one].
at::TensorOptions merged_options(at::TensorList attn, std::optional<at::ScalarType> out_dtype);
at::Tensor stacked_like(at::TensorList parts);

}  // namespace xformers::ops
