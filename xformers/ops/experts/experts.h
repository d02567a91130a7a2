// Mixture of experts without one-hot tensors: which tokens go to which expert is a list of row numbers, in the order of
// the experts. From "GShard" (Lepikhin et al., arXiv:2006.16668); nothing dropped: "MegaBlocks" (Gale et al.,
// arXiv:2211.15841).
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>
#include <vector>

#include "xformers/kernels/base/error.h"
#include "xformers/kernels/params/bias_act_dropout.h"

namespace xformers::ops {

// Where the choices of T tokens, k each, lie when they are put in the order of experts; within an expert first choices
// come before second ones, each in token order. Choices over an expert's capacity lie behind all others, in no expert.
struct ExpertPlaces {
  at::Tensor tokens;  // int64 [T k]: the token of each row
  at::Tensor slots;   // int64 [T, k]: the row of each choice
  at::Tensor counts;  // int64 [experts]: rows of each expert
  at::Tensor kept;    // bool [T, k]
};
// choices int64 [T, k], each in [0, num_experts). No shape depends on data.
ExpertPlaces expert_places(const at::Tensor& choices, int64_t num_experts, std::optional<int64_t> capacity);

struct ExpertRoutes {
  at::Tensor choices;   // int64 [T, k]
  at::Tensor weights;   // fp32 (fp64 for fp64) [T, k], 0 where dropped; differentiable in logits
  at::Tensor aux_loss;  // []: mean over experts of (mean gate) (share of first choices); differentiable
  ExpertPlaces places;
};
// gates = softmax(logits [T, experts]) in fp32 or better. The first choice is the largest gate; each further one the
// largest of logits + noise (none: no noise) among those left. The gates of kept choices are divided by their sum (at
// least the type's epsilon); for k = 1 they stay, as in "Switch Transformers" (Fedus et al., arXiv:2101.03961).
ExpertRoutes route_top_k(const at::Tensor& logits, int64_t k, std::optional<int64_t> capacity,
                         const std::optional<at::Tensor>& noise = std::nullopt);

// Rows of x [T, dim] in the order of experts: [T k, dim]. Differentiable; a token's gradient has one owner, who adds
// its k rows in order: the same bits every run.
at::Tensor experts_gather(const at::Tensor& x, const at::Tensor& tokens, const at::Tensor& slots);

// out[t] = sum over k of weights[t, k] y[slots[t, k]], in fp32 (fp64 for fp64): [T, dim]. weights: none, all 1.
at::Tensor experts_combine(const at::Tensor& y, const at::Tensor& tokens, const at::Tensor& slots,
                           const std::optional<at::Tensor>& weights = std::nullopt);

// Expert e's layer on its rows [sum of counts before e, ...) of x; rows of no expert give zeros. w1 [hidden, in], b1
// [hidden], w2 [out, hidden], b2 [out] of each expert; no biases: empty lists. The layer is that of mlp.h. On a GPU it
// waits for counts.
at::Tensor experts_mlp(const at::Tensor& x, const at::Tensor& counts, at::TensorList w1, at::TensorList b1,
                       at::TensorList w2, at::TensorList b2, Activation activation = Activation::kNone, double p = 0);

// Rows between processes: input_splits[r] rows go to rank r of the named c10d group, output_splits[r] come from it.
// Through LibTorch's functional collectives, found in the dispatcher. Differentiable.
at::Tensor exchange_rows(const at::Tensor& x, at::IntArrayRef output_splits, at::IntArrayRef input_splits,
                         const std::string& group);

}  // namespace xformers::ops
