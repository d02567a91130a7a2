// The merge operators on CPU tensors.
#include <torch/library.h>

#include "xformers/kernels/cpu/merge/merge_cpu.h"
#include "xformers/ops/attention/merge_attentions_params.h"
#include "xformers/ops/common/threads.h"

namespace xformers::ops {
namespace {

std::tuple<at::Tensor, at::Tensor> forward_cpu(at::TensorList attn, at::TensorList lse, bool write_lse,
                                               std::optional<at::ScalarType> out_dtype) {
  return run_merge(attn, lse, write_lse, out_dtype,
                   [](const MergeFwdParams& params) { cpu::merge_forward(params, torch_threads()); });
}

MergeGradients backward_cpu(const at::Tensor& grad_out, const std::optional<at::Tensor>& grad_lse, at::TensorList attn,
                            at::TensorList lse) {
  return run_merge_backward(grad_out, grad_lse, attn, lse,
                            [](const MergeBwdParams& params) { cpu::merge_backward(params, torch_threads()); });
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, CPU, m) {
  m.impl("merge_attentions", xformers::ops::forward_cpu);
  m.impl("merge_attentions_backward", xformers::ops::backward_cpu);
}
