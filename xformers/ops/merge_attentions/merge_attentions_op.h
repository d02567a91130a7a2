// The arguments of the merge operators.
#pragma once

#include "xformers/ops/common/operator.h"

namespace xformers::ops {

struct MergeAttentions {
  static constexpr const char* kName = "merge_attentions";
  static constexpr const char* kResults[] = {"out", "lse"};
  using Result = std::tuple<at::Tensor, at::Tensor>;
  at::TensorList attn{}, lse{};
  bool write_lse = true;
  std::optional<at::ScalarType> out_dtype{};

  static constexpr auto arguments() {
    using A = MergeAttentions;
    return std::tuple{arg("attn", &A::attn), arg("lse", &A::lse), arg("write_lse", &A::write_lse),
                      arg("out_dtype", &A::out_dtype)};
  }
  void check() const;
  Result empty() const;
};

struct MergeAttentionsBackward {
  static constexpr const char* kName = "merge_attentions_backward";
  static constexpr const char* kResults[] = {"dattn", "dlse"};  // each stacked: [parts, ...]
  using Result = std::tuple<at::Tensor, at::Tensor>;
  at::Tensor grad_out;
  OptionalTensor grad_lse{};
  at::TensorList attn{}, lse{};

  static constexpr auto arguments() {
    using A = MergeAttentionsBackward;
    return std::tuple{arg("grad_out", &A::grad_out), arg("grad_lse", &A::grad_lse), arg("attn", &A::attn),
                      arg("lse", &A::lse)};
  }
  void check() const;
  Result empty() const;
};

}  // namespace xformers::ops
