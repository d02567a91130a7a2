// "LambdaNetworks" (Bello, arXiv:2102.08602): attention replaced by linear functions of the queries,
//
//   out_n = q_n (softmax(k over features)^T v) + position term,       E[i, j] = rel_pos_emb[j - i + longest - 1].
//
// The position term of the reference weighs every token's own value: (q_n . sum over i of E[i, n]) v_n, O(seqlen
// head_dim) by prefix sums. The paper's mixes tokens: sum over m of (q_n . E[n, m]) v_m, computed in blocks of queries.
#pragma once

#include "xformers/ops/common/operator.h"

namespace xformers::nn::functional {

struct LambdaArgs {
  static constexpr const char* kName = "lambda_layer";
  using Result = at::Tensor;
  at::Tensor q, k, v;           // [batch, seqlen, heads, head_dim] or, heads folded, [batch * heads, seqlen, head_dim]
  at::Tensor rel_pos_emb;       // [2 * longest - 1, head_dim]
  bool paper_position = false;  // the paper's position term

  static constexpr auto arguments() {
    using A = LambdaArgs;
    return std::tuple{ops::arg("q", &A::q), ops::arg("k", &A::k), ops::arg("v", &A::v),
                      ops::arg("rel_pos_emb", &A::rel_pos_emb), ops::arg("paper_position", &A::paper_position)};
  }
};

// In q's layout. xformers::Error where the sequence is longer than rel_pos_emb allows, or shapes do not fit.
at::Tensor lambda_layer(const LambdaArgs& args);

}  // namespace xformers::nn::functional
