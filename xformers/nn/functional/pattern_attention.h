// Attention of a fixed number of tokens under a pattern that the layer holds. A shorter sequence is followed by tokens
// of zeros up to that number, which count as keys wherever the pattern shows them, and their rows are cut off again.
#pragma once

#include "xformers/ops/common/operator.h"

namespace xformers::nn::functional {

// Global tokens see all and are seen by all (global_token_pattern). Nobody makes the pattern where it is sparse: all
// rows attend to the keys of the global tokens, which are gathered, and the rows of the global tokens to all keys.
struct GlobalAttentionArgs {
  static constexpr const char* kName = "global_attention";
  using Result = at::Tensor;
  at::Tensor q, k, v;        // [batch, seqlen, heads, head_dim] or, heads folded, [batch * heads, seqlen, head_dim]
  at::Tensor global_tokens;  // int64 [number of global tokens], ascending
  int64_t seq_len = 0;       // of the pattern
  bool causal = false;
  ops::OptionalTensor att_mask{};  // of functional/attend.h, beside the pattern, which then is made
  double p = 0;                    // of dropping a weight

  static constexpr auto arguments() {
    using A = GlobalAttentionArgs;
    return std::tuple{ops::arg("q", &A::q),
                      ops::arg("k", &A::k),
                      ops::arg("v", &A::v),
                      ops::arg("global_tokens", &A::global_tokens),
                      ops::arg("seq_len", &A::seq_len).required(),
                      ops::arg("causal", &A::causal),
                      ops::arg("att_mask", &A::att_mask),
                      ops::arg("p", &A::p)};
  }
};
at::Tensor global_attention(const GlobalAttentionArgs& args);

// Any pattern.
struct PatternAttentionArgs {
  static constexpr const char* kName = "pattern_attention";
  using Result = at::Tensor;
  at::Tensor q, k, v;
  at::Tensor pattern;                                  // bool [n, n], n at least seqlen
  ops::OptionalTensor att_mask{}, key_padding_mask{};  // functional/attend.h, beside the pattern
  bool causal = false;                                 // j <= i too
  double p = 0;

  static constexpr auto arguments() {
    using A = PatternAttentionArgs;
    return std::tuple{ops::arg("q", &A::q),
                      ops::arg("k", &A::k),
                      ops::arg("v", &A::v),
                      ops::arg("pattern", &A::pattern),
                      ops::arg("att_mask", &A::att_mask),
                      ops::arg("key_padding_mask", &A::key_padding_mask),
                      ops::arg("causal", &A::causal),
                      ops::arg("p", &A::p)};
  }
};
at::Tensor pattern_attention(const PatternAttentionArgs& args);

}  // namespace xformers::nn::functional
