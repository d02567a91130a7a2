// Attention over a sequence that is spread over the ranks of a process group, given by name. What each rank holds and
// computes is a plan (plan.h); the keys that its queries see are sent to it, no others.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <tuple>

#include "xformers/kernels/base/error.h"
#include "xformers/ops/context_parallel/plan.h"

namespace xformers::ops {

// (out, lse) of this rank's queries: those rows of memory_efficient_attention on the whole sequence. query
// [batch, local seqlen, heads, head_dim], key and value of the same tokens; also [groups, heads] for heads, where
// `expand`ed key and value heads travel once. lse [batch, (groups,) heads, local seqlen]. Differentiable; gradients of
// keys are added up over the ranks in fp32 (fp64 for fp64).
std::tuple<at::Tensor, at::Tensor> context_parallel_attention_with_lse(const at::Tensor& query, const at::Tensor& key,
                                                                       const at::Tensor& value,
                                                                       const parallel::ContextProblem& problem,
                                                                       const std::string& group,
                                                                       std::optional<double> scale = std::nullopt);

// This rank's rows of dim of a tensor that all ranks have, and all rows from those of each rank; each is the other's
// gradient.
at::Tensor shard_context(const at::Tensor& x, const parallel::ContextProblem& problem, const std::string& group,
                         int64_t dim = 1);
at::Tensor unshard_context(const at::Tensor& x, const parallel::ContextProblem& problem, const std::string& group,
                           int64_t dim = 1);

}  // namespace xformers::ops
