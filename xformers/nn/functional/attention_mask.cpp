#include "xformers/nn/functional/attention_mask.h"

#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>

namespace xformers::nn::functional {
namespace {

constexpr double kHidden = -std::numeric_limits<double>::infinity();

at::Tensor additive_mask_by_name(const at::Tensor& mask, std::optional<at::ScalarType> dtype) {
  return additive_mask(mask, dtype.value_or(at::kFloat));
}

at::Tensor causal_mask_by_name(c10::SymInt seq_len, c10::SymInt to_seq_len, std::optional<at::ScalarType> dtype,
                               std::optional<at::Device> device) {
  return causal_mask(seq_len, to_seq_len, at::TensorOptions().dtype(dtype).device(device));
}

}  // namespace

at::Tensor additive_mask(const at::Tensor& mask, at::ScalarType dtype) {
  if (mask.scalar_type() != at::kBool) {
    ops::Check("AttentionMask.from_bool").fail("the mask", ops::describe(mask), "bool", "compare it first");
  }
  return at::zeros_symint(mask.sym_sizes(), mask.options().dtype(dtype)).masked_fill_(mask.logical_not(), kHidden);
}

at::Tensor causal_mask(const c10::SymInt& seq_len, const c10::SymInt& to_seq_len, const at::TensorOptions& options) {
  const at::Tensor later = at::ones_symint({1, seq_len, to_seq_len}, options.dtype(at::kBool)).triu(1);
  return at::zeros_symint({1, seq_len, to_seq_len}, options).masked_fill_(later, kHidden);
}

AttentionMask::AttentionMask(const at::Tensor& additive, bool is_causal)
    : values_(additive.dim() == 2 ? additive.unsqueeze(0) : additive),
      is_causal_(is_causal),
      sizes_(values_.sizes().vec()),
      options_(values_.options()) {
  const ops::Check check("AttentionMask");
  if (additive.dim() < 2) check.fail("additive", ops::describe(additive), "[seq_len, to_seq_len]", "reshape it");
  if (!additive.is_floating_point()) {
    check.fail("additive", ops::describe(additive), "a floating type", "use from_bool or from_multiplicative");
  }
  if (additive.requires_grad()) check.fail("additive", "a tensor with a gradient", "one without", "detach it");
}

AttentionMask AttentionMask::from_bool(const at::Tensor& mask) { return AttentionMask(additive_mask(mask)); }

AttentionMask AttentionMask::from_multiplicative(const at::Tensor& mask) {
  if (mask.scalar_type() == at::kBool) {
    ops::Check("AttentionMask.from_multiplicative").fail("the mask", "bool", "numbers", "use from_bool");
  }
  return from_bool(mask != 0);
}

AttentionMask AttentionMask::make_causal(int64_t seq_len, std::optional<int64_t> to_seq_len,
                                         const at::TensorOptions& options) {
  return {{1, seq_len, to_seq_len.value_or(seq_len)}, options};
}

const at::Tensor& AttentionMask::values() const {
  if (!values_.defined()) values_ = causal_mask(seq_len(), to_seq_len(), options_);
  return values_;
}

at::Tensor AttentionMask::to_bool() const { return values() != kHidden; }

AttentionMask AttentionMask::make_crop(int64_t seq_len, std::optional<int64_t> to_seq_len) const {
  const int64_t rows = std::min(seq_len, this->seq_len()),
                columns = std::min(to_seq_len.value_or(seq_len), this->to_seq_len());
  if (!values_.defined()) return {{1, rows, columns}, options_};
  return AttentionMask(values_.narrow(1, 0, rows).narrow(2, 0, columns), is_causal_);
}

AttentionMask AttentionMask::to(const at::TensorOptions& options) const {
  const at::TensorOptions merged = options_.merge_in(options);
  if (!values_.defined()) return {sizes_, merged};
  return AttentionMask(values_.to(merged), is_causal_);
}

AttentionMask AttentionMask::operator+(const AttentionMask& other) const {
  return AttentionMask(values() + other.values());
}

AttentionMask AttentionMask::operator&(const AttentionMask& other) const {
  return AttentionMask(additive_mask(to_bool().logical_and(other.to_bool())), is_causal_ || other.is_causal_);
}

Masks AttentionMask::masks(int64_t seqlen_q, int64_t seqlen_k) const {
  const bool fits = seq_len() == seqlen_q && to_seq_len() == seqlen_k;
  const bool cropped = seqlen_q == seqlen_k && std::min(seq_len(), to_seq_len()) >= seqlen_q;
  if (!values_.defined() && (fits || cropped)) return {.causal = true};
  return {.att_mask = values()};
}

}  // namespace xformers::nn::functional

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  m.def("additive_mask(Tensor mask, ScalarType? dtype=None) -> Tensor", tags);
  m.def("causal_mask(SymInt seq_len, SymInt to_seq_len, *, ScalarType? dtype=None, Device? device=None) -> Tensor",
        tags);
}
TORCH_LIBRARY_IMPL(xformers, CompositeImplicitAutograd, m) {
  m.impl("additive_mask", xformers::nn::functional::additive_mask_by_name);
  m.impl("causal_mask", xformers::nn::functional::causal_mask_by_name);
}
