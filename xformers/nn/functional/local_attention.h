// Attention to the tokens nearby, a band of the score matrix: no mask is made, and the cost grows with the window.
#pragma once

#include "xformers/ops/common/operator.h"

namespace xformers::nn::functional {

struct LocalAttentionArgs {
  static constexpr const char* kName = "local_attention";
  using Result = at::Tensor;
  at::Tensor q, k, v;  // [batch, seqlen, heads, head_dim] or, heads folded, [batch * heads, seqlen, head_dim]
  ops::OptionalTensor att_mask{}, key_padding_mask{};  // functional/attend.h, beside the window
  int64_t window_size = 5;  // |i - j| <= window_size / 2, an odd number; causal: 0 <= i - j <= window_size
  bool causal = false;
  bool masked_causal = false;  // j <= i on top of the window
  double p = 0;                // of dropping a weight

  static constexpr auto arguments() {
    using A = LocalAttentionArgs;
    return std::tuple{ops::arg("q", &A::q),
                      ops::arg("k", &A::k),
                      ops::arg("v", &A::v),
                      ops::arg("att_mask", &A::att_mask),
                      ops::arg("key_padding_mask", &A::key_padding_mask),
                      ops::arg("window_size", &A::window_size),
                      ops::arg("causal", &A::causal),
                      ops::arg("masked_causal", &A::masked_causal),
                      ops::arg("p", &A::p)};
  }
};

// In q's layout; a row that sees nothing is 0.
at::Tensor local_attention(const LocalAttentionArgs& args);

// xformers::Error for a window that is not what LocalAttentionArgs says.
void check_window(int64_t window_size, bool causal);

}  // namespace xformers::nn::functional
