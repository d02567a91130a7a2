// "Linformer" (Wang et al., arXiv:2006.04768): keys and values projected along the sequence to k rows,
// softmax(q (E k)^T / sqrt(head_dim)) (F v). O(seqlen k).
#pragma once

#include "xformers/ops/common/operator.h"

namespace xformers::nn::functional {

struct LinformerArgs {
  static constexpr const char* kName = "linformer_attention";
  using Result = at::Tensor;
  at::Tensor q, k, v;  // [batch, seqlen, heads, head_dim] or, heads folded, [batch * heads, seqlen, head_dim]
  at::Tensor e, f;     // [k, longest]: their first seqlen columns are used
  double p = 0;        // of dropping a weight, and again an element of the output

  static constexpr auto arguments() {
    using A = LinformerArgs;
    return std::tuple{ops::arg("q", &A::q), ops::arg("k", &A::k), ops::arg("v", &A::v),
                      ops::arg("e", &A::e), ops::arg("f", &A::f), ops::arg("p", &A::p)};
  }
};

// In q's layout. xformers::Error where the sequence is longer than e and f, or shapes do not fit.
at::Tensor linformer_attention(const LinformerArgs& args);

}  // namespace xformers::nn::functional
