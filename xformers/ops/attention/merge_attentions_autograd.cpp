// Gradients of merge_attentions.
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include "xformers/ops/attention/merge_attentions_op.h"
#include "xformers/ops/common/arguments.h"
#include "xformers/ops/common/gradient_node.h"

namespace xformers::ops {
namespace {

// saved: attn, then lse. grads: of out and of lse.
GradientNode::variable_list gradients(const GradientNode::variable_list& grads, const SavedForGradient& saved) {
  const at::TensorList tensors(saved.tensors);
  const size_t num_parts = tensors.size() / 2;
  const at::TensorList attn = tensors.slice(0, num_parts), lse = tensors.slice(num_parts);
  const at::Tensor grad_out = grads[0].defined() ? grads[0] : at::zeros_symint(attn[0].sym_sizes(), attn[0].options());
  const auto [grad_attn, grad_part_lse] = merge_attentions_backward(grad_out, to_optional(grads[1]), attn, lse);
  GradientNode::variable_list result = grad_attn.unbind(0);
  for (const at::Tensor& grad : grad_part_lse.unbind(0)) result.push_back(grad);
  return result;
}

std::tuple<at::Tensor, at::Tensor> forward_autograd(at::TensorList attn, at::TensorList lse, bool write_lse,
                                                    std::optional<at::ScalarType> out_dtype) {
  std::vector<at::Tensor> inputs = attn.vec();
  inputs.insert(inputs.end(), lse.begin(), lse.end());
  const auto node = GradientNode::record("XformersMergeAttentionsBackward", gradients, inputs);
  if (node && !write_lse) {
    ArgumentCheck("merge_attentions")
        .fail("write_lse", "False where a gradient is wanted", "True", "leave it out, or call under torch.no_grad()");
  }
  auto [out, merged] = below_autograd([&] { return merge_attentions(attn, lse, write_lse, out_dtype); });
  if (!node) return {out, merged};
  node->save(inputs);
  out = with_history(out, node);
  merged = with_history(merged, node);
  return {out, merged};
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, Autograd, m) {
  m.impl("merge_attentions", xformers::ops::forward_autograd);
  m.impl("merge_attentions_backward", torch::autograd::autogradNotImplementedFallback());  // refuses double backward
}
