// "Compositional Attention" (Mittal et al., arXiv:2110.09419): search and retrieval apart. Every head's weights P (the
// search) fetch the values of all rules (the retrievals), and each token and head chooses among them:
//
//   A[b, s, h, r] = P[b, s, h, :] v_r,     out[b, s, h] = sum over r of softmax over r of score[b, s, h, r]  A[b, s, h,
//   r]
//
// with score = (selection_q / sqrt(dim_selection)) . value_k(A), or a network of (A, selection_q).
#pragma once

#include "xformers/ops/common/operator.h"

namespace xformers::nn::functional {

struct CompositionalArgs {
  static constexpr const char* kName = "compositional_attention";
  using Result = at::Tensor;
  at::Tensor q, k;         // [batch, seqlen, heads, head_dim]
  at::Tensor v;            // [batch, seqlen_k, rules, dim of a rule]
  at::Tensor selection_q;  // [batch, seqlen_q, heads, dim_selection]
  // qk_rule: of value_k, [dim_selection, dim of a rule]. Else the network's first layer over (A, selection_q):
  // [1, dim of a rule + dim_selection], or with a second layer [hidden, ...] and score_weight2 [1, hidden], a relu
  // between.
  at::Tensor score_weight;
  ops::OptionalTensor score_bias{}, score_weight2{}, score_bias2{};
  bool qk_rule = false;
  ops::OptionalTensor att_mask{}, key_padding_mask{};  // functional/attend.h
  bool causal = false;
  double p = 0;                   // of dropping a weight of P, the same for all rules
  std::optional<double> scale{};  // of the scores of P, default head_dim^-0.5

  static constexpr auto arguments() {
    using A = CompositionalArgs;
    return std::tuple{ops::arg("q", &A::q),
                      ops::arg("k", &A::k),
                      ops::arg("v", &A::v),
                      ops::arg("selection_q", &A::selection_q),
                      ops::arg("score_weight", &A::score_weight),
                      ops::arg("score_bias", &A::score_bias),
                      ops::arg("score_weight2", &A::score_weight2),
                      ops::arg("score_bias2", &A::score_bias2),
                      ops::arg("qk_rule", &A::qk_rule),
                      ops::arg("att_mask", &A::att_mask),
                      ops::arg("key_padding_mask", &A::key_padding_mask),
                      ops::arg("causal", &A::causal),
                      ops::arg("p", &A::p),
                      ops::arg("scale", &A::scale)};
  }
};

// [batch, seqlen_q, heads, dim of a rule]
at::Tensor compositional_attention(const CompositionalArgs& args);

}  // namespace xformers::nn::functional
