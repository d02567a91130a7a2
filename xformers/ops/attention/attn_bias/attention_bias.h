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

}  // namespace xformers::ops
