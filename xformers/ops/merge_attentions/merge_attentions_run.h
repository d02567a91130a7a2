// The merge operators on tensors of a device: from tensors to the parameters of its kernels. A `Device` has
//   forward(attn, params), backward(attn, params)   run its kernels where attn is
#pragma once

#include <vector>

#include "xformers/kernels/params/merge.h"
#include "xformers/ops/attention/heads.h"
#include "xformers/ops/merge_attentions/merge_attentions_op.h"

namespace xformers::ops {

// Strides of [batch, seqlen, (groups,) heads, head_dim].
inline HeadsTensor to_merge_attn(const at::Tensor& t) {
  return to_heads(t, t.dim() == 5 ? HeadDims::kGroupsHeads : HeadDims::kGroups);
}

// Strides of [batch, (groups,) heads, seqlen].
inline HeadsTensor to_merge_lse(const at::Tensor& t) {
  return {.data = const_cast<void*>(t.const_data_ptr()),
          .batch_stride = t.stride(0),
          .seq_stride = t.stride(-1),
          .group_stride = t.stride(1),
          .head_stride = t.dim() == 4 ? t.stride(2) : 0};
}

inline MergeShape to_merge_shape(at::TensorList attn, at::TensorList lse, at::ScalarType out_dtype) {
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

inline std::vector<at::Tensor> with_unit_last_strides(at::TensorList tensors) {
  std::vector<at::Tensor> result;
  for (const at::Tensor& t : tensors) result.push_back(with_unit_last_stride(t));
  return result;
}

inline std::vector<MergePart> to_parts(at::TensorList attn, at::TensorList lse) {
  std::vector<MergePart> parts;
  for (size_t i = 0; i < attn.size(); ++i)
    parts.push_back({.out = to_merge_attn(attn[i]), .lse = to_merge_lse(lse[i])});
  return parts;
}

template <class Device>
MergeAttentions::Result run_merge(const MergeAttentions& args) {
  args.check();
  const std::vector<at::Tensor> attn = with_unit_last_strides(args.attn);
  auto [out, lse] = args.empty();
  const std::vector<MergePart> parts = to_parts(attn, args.lse);
  Device::forward(attn[0], MergeFwdParams{.shape = to_merge_shape(attn, args.lse, out.scalar_type()),
                                          .parts = parts.data(),
                                          .out = to_merge_attn(out),
                                          .lse = args.write_lse ? to_merge_lse(lse) : HeadsTensor()});
  return {out, lse};
}

template <class Device>
MergeAttentionsBackward::Result run_merge_backward(const MergeAttentionsBackward& args) {
  args.check();
  const std::vector<at::Tensor> attn = with_unit_last_strides(args.attn);
  const at::Tensor grad_out = with_unit_last_stride(args.grad_out);
  auto [dattn, dlse] = args.empty();
  const std::vector<MergePart> parts = to_parts(attn, args.lse), grads = to_parts(dattn.unbind(0), dlse.unbind(0));
  Device::backward(attn[0], MergeBwdParams{.shape = to_merge_shape(attn, args.lse, grad_out.scalar_type()),
                                           .parts = parts.data(),
                                           .dout = to_merge_attn(grad_out),
                                           .dlse = args.grad_lse ? to_merge_lse(*args.grad_lse) : HeadsTensor(),
                                           .grads = grads.data()});
  return {dattn, dlse};
}

template <class Device>
void implement_merge(torch::Library& m) {
  implement<run_merge<Device>>(m);
  implement<run_merge_backward<Device>>(m);
}

}  // namespace xformers::ops
