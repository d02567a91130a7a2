// What the mechanisms share: tokens with or without heads, masks in their many shapes, and the attention operator,
// which computes every softmax(q k^T) v of this folder. Nobody makes a matrix of scores.
//
// Queries, keys and values are [batch, seqlen, heads, head_dim], any strides, or [batch * heads, seqlen, head_dim] with
// the heads folded into the batch, that of batch element 0 first.
#pragma once

#include <ATen/core/Tensor.h>

#include "xformers/ops/attention/attn_bias/lowered_bias.h"
#include "xformers/ops/common/check.h"
#include "xformers/ops/common/operator.h"

namespace xformers::nn::functional {

using ops::OptionalTensor;

// q, k and v with heads; folded ones count as of one head.
struct Heads {
  // xformers::Error where the three do not fit each other.
  Heads(const ops::Check& check, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v);

  // out [batch, seqlen, heads, head_dim] in the layout that q came in.
  at::Tensor restore(const at::Tensor& out) const;

  at::Tensor q, k, v;
  bool folded;
};

// Keys that a query sees before and after its own place; -1: all.
struct Window {
  int64_t left = -1, right = -1;
};
constexpr Window causal_window(bool causal) { return {-1, causal ? 0 : -1}; }

// Masks as users give them. att_mask: [seqlen_q, seqlen_k], [n, seqlen_q, seqlen_k] with n of 1, batch or batch *
// heads, or [batch, heads, seqlen_q, seqlen_k] with sizes of 1 expanded. key_padding_mask: [n, seqlen_k] or [n, 1,
// seqlen_k]. Both bool (True: attend) or added to the scores; where one is added, so is the other.
struct Masks {
  OptionalTensor att_mask{}, key_padding_mask{};
  bool causal = false;       // j <= i too
  Window window{};           // and this
  ops::BlockLists blocks{};  // and no keys but those of visible blocks
};

// The padding as [batch, 1, 1, seqlen_k] (n = batch) or [batch, heads, 1, seqlen_k] (n = batch * heads).
at::Tensor padding_of_heads(const ops::Check& check, const at::Tensor& key_padding_mask, const Heads& heads);

// t [batch, seqlen, heads, dim] with zeros where the padding, as above, says that no key is: whatever lies there, NaN
// too, reaches nothing.
at::Tensor without_padding(const at::Tensor& t, const at::Tensor& padding);

// softmax(scale q k^T + masks) v, its weights dropped with probability p. scale: head_dim^-0.5 by default.
at::Tensor attend(const ops::Check& check, const Heads& heads, const Masks& masks = {}, double p = 0,
                  std::optional<double> scale = std::nullopt);

// The same without masks, over tensors that all have heads or have none.
at::Tensor attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double p = 0);

// The operator on tensors with heads and a bias that fits them, [batch, heads, seqlen_q, seqlen_k].
at::Tensor attend_biased(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const OptionalTensor& bias,
                         Window window, double p, std::optional<double> scale, const OptionalTensor& philox_state,
                         const ops::BlockLists& blocks = {});

// masks as one tensor for attend_biased, or nothing. AttentionMask wrappers of Python are unwrapped before.
OptionalTensor bias_of_heads(const ops::Check& check, const Heads& heads, const Masks& masks);

// Random state for the dropout of several calls that share their masks.
OptionalTensor draw_state(double p, const at::Tensor& beside);

// x, elements dropped with probability p and the others scaled up.
at::Tensor drop(const at::Tensor& x, double p);

}  // namespace xformers::nn::functional
