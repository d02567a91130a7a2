// Schemas of the merge operators, their checks and what they do on CPU and meta tensors.
#include "xformers/ops/attention/merge_attentions.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <string>
#include <vector>

#include "xformers/kernels/cpu/merge/merge_cpu.h"
#include "xformers/ops/attention/merge_attentions_op.h"
#include "xformers/ops/common/arguments.h"
#include "xformers/ops/common/expanded.h"
#include "xformers/ops/common/threads.h"
#include "xformers/ops/common/to_params.h"

namespace xformers::ops {
namespace {

const ArgumentCheck kCheck("merge_attentions");

std::string item(const char* list, size_t index) { return std::string(list) + "[" + std::to_string(index) + "]"; }

// [batch, seqlen, (groups,) heads, head_dim] -> [batch, (groups,) heads, seqlen]
c10::SymDimVector lse_sizes_of(const at::Tensor& attn) {
  const auto sizes = attn.sym_sizes();
  c10::SymDimVector lse{sizes[0]};
  lse.append(sizes.begin() + 2, sizes.end() - 1);
  lse.push_back(sizes[1]);
  return lse;
}

void check_parts(const char* name, at::TensorList parts) {
  for (size_t i = 1; i < parts.size(); ++i) {
    const std::string title = item(name, i), first = item(name, 0);
    kCheck.shape(title.c_str(), parts[i], parts[0].sym_sizes(), "all parts have the shape of the first");
    kCheck.same_dtype(title.c_str(), parts[i], parts[0], first.c_str());
    kCheck.same_device(title.c_str(), parts[i], parts[0], first.c_str());
  }
}

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

at::TensorOptions out_options(at::TensorList attn, std::optional<at::ScalarType> out_dtype) {
  return attn[0].options().dtype(out_dtype.value_or(attn[0].scalar_type()));
}

// [parts, sizes of one]
at::Tensor stacked_like(at::TensorList parts) {
  c10::SymDimVector sizes{static_cast<int64_t>(parts.size())};
  sizes.append(parts[0].sym_sizes().begin(), parts[0].sym_sizes().end());
  return at::empty_symint(sizes, parts[0].options());
}

std::tuple<at::Tensor, at::Tensor> forward_cpu(at::TensorList attn_arg, at::TensorList lse, bool write_lse,
                                               std::optional<at::ScalarType> out_dtype) {
  check_merge(attn_arg, lse, out_dtype);
  const std::vector<at::Tensor> attn = with_unit_last_strides(attn_arg);
  at::Tensor out = at::empty(attn[0].sizes(), out_options(attn, out_dtype));
  at::Tensor merged = at::empty(write_lse ? lse[0].sizes() : at::IntArrayRef{0}, lse[0].options());
  const std::vector<MergePart> parts = to_parts(attn, lse);
  cpu::merge_forward({.shape = to_shape(attn, lse, out.scalar_type()),
                      .parts = parts.data(),
                      .out = to_attn(out),
                      .lse = write_lse ? to_lse(merged) : HeadsTensor()},
                     torch_threads());
  return {out, merged};
}

MergeGradients backward_cpu(const at::Tensor& grad_out_arg, const std::optional<at::Tensor>& grad_lse,
                            at::TensorList attn_arg, at::TensorList lse) {
  check_merge_gradients(grad_out_arg, grad_lse, attn_arg, lse);
  const std::vector<at::Tensor> attn = with_unit_last_strides(attn_arg);
  const at::Tensor grad_out = with_unit_last_stride(grad_out_arg);
  const at::Tensor grad_attn = stacked_like(attn), grad_part_lse = stacked_like(lse);
  const std::vector<MergePart> parts = to_parts(attn, lse),
                               grads = to_parts(grad_attn.unbind(0), grad_part_lse.unbind(0));
  cpu::merge_backward({.shape = to_shape(attn, lse, grad_out.scalar_type()),
                       .parts = parts.data(),
                       .dout = to_attn(grad_out),
                       .dlse = grad_lse ? to_lse(*grad_lse) : HeadsTensor(),
                       .grads = grads.data()},
                      torch_threads());
  return {grad_attn, grad_part_lse};
}

std::tuple<at::Tensor, at::Tensor> forward_meta(at::TensorList attn, at::TensorList lse, bool write_lse,
                                                std::optional<at::ScalarType> out_dtype) {
  check_merge(attn, lse, out_dtype);
  const auto lse_shape = write_lse ? lse_sizes_of(attn[0]) : c10::SymDimVector{0};
  return {at::empty_symint(attn[0].sym_sizes(), out_options(attn, out_dtype)),
          at::empty_symint(lse_shape, lse[0].options())};
}

MergeGradients backward_meta(const at::Tensor& grad_out, const std::optional<at::Tensor>& grad_lse, at::TensorList attn,
                             at::TensorList lse) {
  check_merge_gradients(grad_out, grad_lse, attn, lse);
  return {stacked_like(attn), stacked_like(lse)};
}

}  // namespace

void check_merge(at::TensorList attn, at::TensorList lse, std::optional<at::ScalarType> out_dtype) {
  if (attn.empty()) kCheck.fail("attn", "empty", "one part or more", "pass a result per set of keys");
  if (attn.size() != lse.size()) {
    kCheck.fail("lse", std::to_string(lse.size()) + " parts", std::to_string(attn.size()) + " like attn",
                "pass the lse that came with each part");
  }
  if (attn[0].dim() != 4 && attn[0].dim() != 5) {
    kCheck.fail("attn[0]", describe(attn[0]),
                "[batch, seqlen, heads, head_dim] or [batch, seqlen, groups, heads, head_dim]",
                "pass the parts as attention returned them");
  }
  kCheck.floating("attn[0]", attn[0]);
  if (attn[0].sym_size(-1) == 0)
    kCheck.fail("attn[0]", describe(attn[0]), "a head_dim of 1 or more", "check the shape");
  kCheck.shape(
      "lse[0]", lse[0], lse_sizes_of(attn[0]),
      "an lse is [batch, (groups,) heads, seqlen] for attn [batch, seqlen, (groups,) heads, head_dim]; slice off "
      "its padding");
  if (lse[0].scalar_type() != at::kFloat && lse[0].scalar_type() != at::kDouble) {
    kCheck.fail("lse[0].dtype", describe_dtype(lse[0].scalar_type()), "fp32 or fp64", "convert with .float()");
  }
  kCheck.same_device("lse[0]", lse[0], attn[0], "attn[0]");
  check_parts("attn", attn);
  check_parts("lse", lse);
  if (out_dtype && *out_dtype != at::kFloat && *out_dtype != at::kDouble && *out_dtype != at::kBFloat16 &&
      *out_dtype != at::kHalf) {
    kCheck.fail("output_dtype", describe_dtype(*out_dtype), "fp32, fp64, bf16 or fp16",
                "leave it out for that of attn");
  }
}

void check_merge_gradients(const at::Tensor& grad_out, const std::optional<at::Tensor>& grad_lse, at::TensorList attn,
                           at::TensorList lse) {
  check_merge(attn, lse, std::nullopt);
  constexpr const char* kForward = "pass the gradients of what the forward returned";
  kCheck.shape("grad_out", grad_out, attn[0].sym_sizes(), kForward);
  kCheck.floating("grad_out", grad_out);
  kCheck.same_device("grad_out", grad_out, attn[0], "attn[0]");
  if (!grad_lse) return;
  kCheck.shape("grad_lse", *grad_lse, lse[0].sym_sizes(), kForward);
  kCheck.same_dtype("grad_lse", *grad_lse, lse[0], "lse[0]");
  kCheck.same_device("grad_lse", *grad_lse, attn[0], "attn[0]");
}

std::tuple<at::Tensor, at::Tensor> merge_attentions(at::TensorList attn, at::TensorList lse, bool write_lse,
                                                    std::optional<at::ScalarType> out_dtype) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("xformers::merge_attentions", "")
                             .typed<decltype(merge_attentions)>();
  return op.call(attn, lse, write_lse, out_dtype);
}

MergeGradients merge_attentions_backward(const at::Tensor& grad_out, const std::optional<at::Tensor>& grad_lse,
                                         at::TensorList attn, at::TensorList lse) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("xformers::merge_attentions_backward", "")
                             .typed<decltype(merge_attentions_backward)>();
  return op.call(grad_out, grad_lse, attn, lse);
}

}  // namespace xformers::ops

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  m.def(
      "merge_attentions(Tensor[] attn, Tensor[] lse, bool write_lse=True, ScalarType? out_dtype=None) -> "
      "(Tensor out, Tensor lse)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "merge_attentions_backward(Tensor grad_out, Tensor? grad_lse, Tensor[] attn, Tensor[] lse) -> "
      "(Tensor dattn, Tensor dlse)",
      {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(xformers, CPU, m) {
  m.impl("merge_attentions", xformers::ops::forward_cpu);
  m.impl("merge_attentions_backward", xformers::ops::backward_cpu);
}

TORCH_LIBRARY_IMPL(xformers, Meta, m) {
  m.impl("merge_attentions", xformers::ops::forward_meta);
  m.impl("merge_attentions_backward", xformers::ops::backward_meta);
}
