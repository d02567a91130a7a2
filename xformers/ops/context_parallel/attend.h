// Attention of a team's queries, step by step through the plan, forward and backward.
#pragma once

#include <optional>
#include <tuple>

#include "xformers/ops/attention/attention_op.h"
#include "xformers/ops/context_parallel/carrier.h"

namespace xformers::ops {

// Heads that `expand` repeats travel once: key [batch, tokens, groups, 1, head_dim] for a query with more.
at::Tensor with_heads_of(const at::Tensor& query, const at::Tensor& key);

// Tokens of a team, all heads of this rank. query [batch, tokens, heads, head_dim] or with [groups, heads] for heads.
struct TeamCall {
  at::Tensor query, key, value;
  std::optional<double> scale{};
};

// Where a row sees keys of several steps, partial results are merged in fp32 (fp64 for fp64) and rounded once.
AttentionResult attend(const Carrier& carrier, const TeamCall& call);

struct TeamGradCall : TeamCall {
  at::Tensor grad_out, out, lse, lse_low;
  OptionalTensor grad_lse{};
};

// (dq, dk, dv): dq in the query's dtype, dk and dv, in the shapes of key and value, fp32 (fp64 for fp64).
std::tuple<at::Tensor, at::Tensor, at::Tensor> attend_backward(const Carrier& carrier, const TeamGradCall& call);

}  // namespace xformers::ops
