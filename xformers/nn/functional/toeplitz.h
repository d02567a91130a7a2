// out_n = sum over m of (q_n . rel[m - n + longest - 1]) v_m: linear attention by relative positions, without a matrix
// of seqlen x seqlen elements, forward or backward.
#pragma once

#include "xformers/ops/common/operator.h"

namespace xformers::nn::functional {

struct ToeplitzArgs {
  static constexpr const char* kName = "_toeplitz_product";
  using Result = at::Tensor;
  at::Tensor q;    // [batch, seqlen, heads, head_dim]
  at::Tensor v;    // [batch, seqlen, heads, head_dim_v]
  at::Tensor rel;  // [2 * longest - 1, head_dim]

  static constexpr auto arguments() {
    using A = ToeplitzArgs;
    return std::tuple{ops::arg("q", &A::q), ops::arg("v", &A::v), ops::arg("rel", &A::rel)};
  }
  void check() const {}  // lambda_layer's
  at::Tensor empty() const;
};

struct ToeplitzBackwardArgs : ToeplitzArgs {
  static constexpr const char* kName = "_toeplitz_product_backward";
  static constexpr const char* kResults[] = {"dq", "dv", "drel"};
  using Result = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
  at::Tensor grad_out;

  static constexpr auto arguments() {
    return std::tuple_cat(std::tuple{ops::arg("grad_out", &ToeplitzBackwardArgs::grad_out)}, ToeplitzArgs::arguments());
  }
  Result empty() const;
};

at::Tensor toeplitz_product(const ToeplitzArgs& args);

}  // namespace xformers::nn::functional
