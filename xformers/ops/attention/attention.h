// Memory-efficient attention over LibTorch tensors.
//
//   out = dropout(softmax(scale * query key^T + attn_bias), p) value
//
// query [batch, seqlen_q, heads, head_dim], key and value [batch, seqlen_k, heads, head_dim(_v)]; also without heads
// (3-D) and with [groups, heads] for heads (5-D: grouped-query attention with `expand`ed key and value heads, which are
// never copied). The result is contiguous in the query's layout. Differentiable in query, key, value, a tensor bias and
// the tensors of ScoreOptions; works under autocast. Wrong arguments throw xformers::Error, which says what came, what
// was expected and how to fix it.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

#include "xformers/kernels/base/error.h"
#include "xformers/ops/attention/attn_bias.h"
#include "xformers/ops/merge_attentions/merge_attentions.h"

namespace xformers::ops {

// What is done to scores between the product and the softmax, in this order; docs/ops/score-modifiers.md. The tensors
// are
// [(batch or sequences,) (groups,) heads] and differentiable: slopes fp32 (fp64 for fp64 inputs), sinks likewise or in
// the query's dtype.
struct ScoreOptions {
  double softcap = 0;         // score -> softcap * tanh(score / softcap); 0: off
  at::Tensor alibi_slopes{};  // score -> score - slope * distance to the diagonal
  at::Tensor sinks{};         // behind attn_bias: a key of this score and no value
};

// p: probability of dropping a weight, drawn from the default generator. scale: default head_dim^-0.5. out_dtype:
// default the query's.
at::Tensor memory_efficient_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                                      const AttentionBias& attn_bias = {}, double p = 0.0,
                                      std::optional<double> scale = std::nullopt,
                                      std::optional<at::ScalarType> out_dtype = std::nullopt,
                                      const ScoreOptions& options = {});

// (out, lse): also the natural log-sum-exp of the scores, fp32 (fp64 for fp64 inputs), [batch, heads, seqlen_q], 5-D
// [batch, groups, heads, seqlen_q], 3-D [batch, 1, seqlen_q]; -inf where a query sees no key. Differentiable too.
std::tuple<at::Tensor, at::Tensor> memory_efficient_attention_with_lse(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, const AttentionBias& attn_bias = {},
    double p = 0.0, std::optional<double> scale = std::nullopt, std::optional<at::ScalarType> out_dtype = std::nullopt,
    const ScoreOptions& options = {});

// The same over some of the keys, for merge_attentions (merge_attentions.h): out in fp32 (fp64 for fp64 inputs) by
// default, so that merging loses nothing. Sinks belong to the whole: xformers::Error.
std::tuple<at::Tensor, at::Tensor> memory_efficient_attention_partial(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, const AttentionBias& attn_bias = {},
    std::optional<double> scale = std::nullopt, std::optional<at::ScalarType> out_dtype = std::nullopt,
    const ScoreOptions& options = {});

}  // namespace xformers::ops
