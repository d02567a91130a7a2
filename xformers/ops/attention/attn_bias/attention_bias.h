// What attention takes as attn_bias: nothing, a tensor, or any class that lowers to layout, band and scores.
#pragma once

#include <concepts>

// Declares lower(at::Tensor), which lookup by argument would not find.
#include "xformers/ops/attention/attn_bias/whole_matrix.h"

namespace xformers::ops {

template <class Bias>
concept Lowerable = requires(const Bias& bias) {
  { lower(bias) } -> std::same_as<LoweredBias>;
};

// Any bias that has a lower(), or none.
class AttentionBias {
 public:
  AttentionBias() = default;
  template <Lowerable Bias>
  AttentionBias(const Bias& bias) : lowered_(lower(bias)) {}

  const LoweredBias& lowered() const { return lowered_; }

 private:
  LoweredBias lowered_;
};

// The same bias, scores [sequences or 1, (groups or 1,) heads or 1, longest queries or more, longest keys or more]
// added at the place of query and key inside each sequence; in the query's dtype, or bool: True attends. Gradients flow
// to it. A bias that has scores already gets others. xformers::Error where they are too small for the longest sequence.
template <class Bias>
Bias with_bias(Bias bias, const at::Tensor& scores) {
  check_scores(scores, bias.q_seqinfo.num_sequences(), bias.q_seqinfo.max_seqlen, bias.k_seqinfo.max_seqlen);
  bias.scores = scores;
  return bias;
}

}  // namespace xformers::ops
