#include "xformers/ops/attention/merge_attentions_params.h"

#include <ATen/ops/empty.h>

#include <vector>

#include "xformers/ops/common/expanded.h"
#include "xformers/ops/common/to_params.h"

namespace xformers::ops {
namespace {

// Strides of [batch, seqlen, (groups,) heads, head_dim].
HeadsTensor to_attn(const at::Tensor& t) {
  return to_heads(t, t.dim() == 5 ? HeadDims::kGroupsHeads : HeadDims::kGroups);
}

// Strides of [batch, (groups,) heads, seqlen].
HeadsTensor to_lse(const at::Tensor& t) {
  return {.data = const_cast<void*>(t.const_data_ptr()),
          .batch_stride = t.stride(0),
          .seq_stride = t.stride(-1),
          .group_stride = t.stride(1),
          .head_stride = t.dim() == 4 ? t.stride(2) : 0};
}

MergeShape to_shape(at::TensorList attn, at::TensorList lse, at::ScalarType out_dtype) {
  const at::Tensor& first = attn[0];
  return {.dtype = to_dtype(first.scalar_type()),
          .out_dtype = to_dtype(out_dtype),
          .lse_dtype = to_dtype(lse[0].scalar_type()),
          .num_parts = static_cast<int64_t>(attn.size()),
          .batch = first.size(0),
          .seqlen = first.size(1),
          .num_groups = first.size(2),
          .heads_per_group = first.dim() == 5 ? first.size(3) : 1,
          .head_dim = first.size(-1)};
}

std::vector<at::Tensor> with_unit_last_strides(at::TensorList tensors) {
  std::vector<at::Tensor> result;
  for (const at::Tensor& t : tensors) result.push_back(with_unit_last_stride(t));
  return result;
}

std::vector<MergePart> to_parts(at::TensorList attn, at::TensorList lse) {
  std::vector<MergePart> parts;
  for (size_t i = 0; i < attn.size(); ++i) parts.push_back({.out = to_attn(attn[i]), .lse = to_lse(lse[i])});
  return parts;
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> run_merge(at::TensorList attn_arg, at::TensorList lse, bool write_lse,
                                             std::optional<at::ScalarType> out_dtype,
                                             c10::function_ref<void(const MergeFwdParams& params)> kernel) {
  check_merge(attn_arg, lse, out_dtype);
  const std::vector<at::Tensor> attn = with_unit_last_strides(attn_arg);
  at::Tensor out = at::empty(attn[0].sizes(), merged_options(attn, out_dtype));
  at::Tensor merged = at::empty(write_lse ? lse[0].sizes() : at::IntArrayRef{0}, lse[0].options());
  const std::vector<MergePart> parts = to_parts(attn, lse);
  kernel({.shape = to_shape(attn, lse, out.scalar_type()),
          .parts = parts.data(),
          .out = to_attn(out),
          .lse = write_lse ? to_lse(merged) : HeadsTensor()});
  return {out, merged};
}

MergeGradients run_merge_backward(const at::Tensor& grad_out_arg, const std::optional<at::Tensor>& grad_lse,
                                  at::TensorList attn_arg, at::TensorList lse,
                                  c10::function_ref<void(const MergeBwdParams& params)> kernel) {
  check_merge_gradients(grad_out_arg, grad_lse, attn_arg, lse);
  const std::vector<at::Tensor> attn = with_unit_last_strides(attn_arg);
  const at::Tensor grad_out = with_unit_last_stride(grad_out_arg);
  const at::Tensor grad_attn = stacked_like(attn), grad_part_lse = stacked_like(lse);
  const std::vector<MergePart> parts = to_parts(attn, lse),
                               grads = to_parts(grad_attn.unbind(0), grad_part_lse.unbind(0));
  kernel({.shape = to_shape(attn, lse, grad_out.scalar_type()),
          .parts = parts.data(),
          .dout = to_attn(grad_out),
          .dlse = grad_lse ? to_lse(*grad_lse) : HeadsTensor(),
          .grads = grads.data()});
  return {grad_attn, grad_part_lse};
}

}  // namespace xformers::ops
