// Schemas of the merge operators, their checks and what they do on meta tensors.
#include "xformers/ops/attention/merge_attentions.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <string>

#include "xformers/ops/attention/merge_attentions_op.h"
#include "xformers/ops/common/arguments.h"

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

std::tuple<at::Tensor, at::Tensor> forward_meta(at::TensorList attn, at::TensorList lse, bool write_lse,
                                                std::optional<at::ScalarType> out_dtype) {
  check_merge(attn, lse, out_dtype);
  const auto lse_shape = write_lse ? lse_sizes_of(attn[0]) : c10::SymDimVector{0};
  return {at::empty_symint(attn[0].sym_sizes(), merged_options(attn, out_dtype)),
          at::empty_symint(lse_shape, lse[0].options())};
}

MergeGradients backward_meta(const at::Tensor& grad_out, const std::optional<at::Tensor>& grad_lse, at::TensorList attn,
                             at::TensorList lse) {
  check_merge_gradients(grad_out, grad_lse, attn, lse);
  return {stacked_like(attn), stacked_like(lse)};
}

}  // namespace

at::TensorOptions merged_options(at::TensorList attn, std::optional<at::ScalarType> out_dtype) {
  return attn[0].options().dtype(out_dtype.value_or(attn[0].scalar_type()));
}

at::Tensor stacked_like(at::TensorList parts) {
  c10::SymDimVector sizes{static_cast<int64_t>(parts.size())};
  sizes.append(parts[0].sym_sizes().begin(), parts[0].sym_sizes().end());
  return at::empty_symint(sizes, parts[0].options());
}

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

TORCH_LIBRARY_IMPL(xformers, Meta, m) {
  m.impl("merge_attentions", xformers::ops::forward_meta);
  m.impl("merge_attentions_backward", xformers::ops::backward_meta);
}
