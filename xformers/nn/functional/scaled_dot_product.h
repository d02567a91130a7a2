// "Attention Is All You Need" (Vaswani et al., arXiv:1706.03762): softmax(q k^T / sqrt(head_dim) + masks) v.
#pragma once

#include "xformers/ops/common/operator.h"

namespace xformers::nn::functional {

struct ScaledDotProductArgs {
  static constexpr const char* kName = "scaled_dot_product";
  using Result = at::Tensor;
  at::Tensor q, k, v;  // [batch, seqlen, heads, head_dim] or, heads folded, [batch * heads, seqlen, head_dim]
  ops::OptionalTensor att_mask{}, key_padding_mask{};  // functional/attend.h
  bool causal = false;
  double p = 0;  // of dropping a weight

  static constexpr auto arguments() {
    using A = ScaledDotProductArgs;
    return std::tuple{ops::arg("q", &A::q),
                      ops::arg("k", &A::k),
                      ops::arg("v", &A::v),
                      ops::arg("att_mask", &A::att_mask),
                      ops::arg("key_padding_mask", &A::key_padding_mask),
                      ops::arg("causal", &A::causal),
                      ops::arg("p", &A::p)};
  }
};

// In q's layout. A mask for longer sequences is cut where there are as many keys as queries; a row that sees nothing is
// 0. xformers::Error where shapes or devices do not fit.
at::Tensor scaled_dot_product(const ScaledDotProductArgs& args);

// The weights alone, softmax(q k^T / sqrt(head_dim) + mask), a matrix of scores: [batch, heads, seqlen_q, seqlen_k], or
// [batch * heads, seqlen_q, seqlen_k] where heads are folded. For who looks at them, or changes them by other means
// than dropout. A row that sees nothing is 0. Errors as above.
at::Tensor attention_weights(const at::Tensor& q, const at::Tensor& k, const ops::OptionalTensor& att_mask,
                             bool causal);

}  // namespace xformers::nn::functional
