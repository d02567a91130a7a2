// Masks that are added to the scores, as a type: what they hide, and whether that is the future.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "xformers/nn/functional/attend.h"

namespace xformers::nn::functional {

// 0 where mask (bool, any shape) is true, -inf where not. Also torch.ops.xformers.additive_mask.
at::Tensor additive_mask(const at::Tensor& mask, at::ScalarType dtype = at::kFloat);

// [1, seq_len, to_seq_len]: 0 where j <= i, else -inf. Also torch.ops.xformers.causal_mask.
at::Tensor causal_mask(const c10::SymInt& seq_len, const c10::SymInt& to_seq_len, const at::TensorOptions& options);

// A mask [batch, seq_len, to_seq_len] that is added to the scores: 0 where a query attends, -inf where not. One of
// make_causal has values only once somebody asks for them; attention needs none. The rules are those of Python's
// AttentionMask. A value: copies share their tensor.
class AttentionMask {
 public:
  // additive: floating, without gradient (else xformers::Error); [seq_len, to_seq_len] becomes [1, seq_len,
  // to_seq_len].
  explicit AttentionMask(const at::Tensor& additive, bool is_causal = false);
  static AttentionMask from_bool(const at::Tensor& mask);            // true attends; xformers::Error unless bool
  static AttentionMask from_multiplicative(const at::Tensor& mask);  // not 0 attends; xformers::Error for bool
  // Query i sees the keys j <= i. to_seq_len: seq_len by default; options: dtype and device.
  static AttentionMask make_causal(int64_t seq_len, std::optional<int64_t> to_seq_len = std::nullopt,
                                   const at::TensorOptions& options = {});

  const at::Tensor& values() const;
  at::Tensor to_bool() const;  // true where a query attends
  // The first rows and columns, a view; to_seq_len: seq_len by default.
  AttentionMask make_crop(int64_t seq_len, std::optional<int64_t> to_seq_len = std::nullopt) const;
  // In another dtype or on another device, whichever options name.
  AttentionMask to(const at::TensorOptions& options) const;
  AttentionMask operator+(const AttentionMask& other) const;  // never causal
  AttentionMask operator&(const AttentionMask& other) const;  // where both let attend; causal if one of them is

  // As the mechanisms take it, for these sequences: a band where it is j <= i and nothing else, else the values.
  Masks masks(int64_t seqlen_q, int64_t seqlen_k) const;

  bool is_causal() const { return is_causal_; }
  int64_t seq_len() const { return sizes_[sizes_.size() - 2]; }
  int64_t to_seq_len() const { return sizes_.back(); }
  at::IntArrayRef sizes() const { return sizes_; }
  at::Device device() const { return options_.device(); }
  at::ScalarType dtype() const { return at::typeMetaToScalarType(options_.dtype()); }

 private:
  AttentionMask(std::vector<int64_t> sizes, const at::TensorOptions& options)  // causal, without values yet
      : is_causal_(true), sizes_(std::move(sizes)), options_(options) {}

  mutable at::Tensor values_;  // undefined: j <= i
  bool is_causal_;
  std::vector<int64_t> sizes_;
  at::TensorOptions options_;
};

}  // namespace xformers::nn::functional

namespace xformers::nn {
using functional::AttentionMask;
}  // namespace xformers::nn
