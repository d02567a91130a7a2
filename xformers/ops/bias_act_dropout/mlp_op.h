// The arguments of the feed-forward layer's operators.
#pragma once

#include "xformers/ops/bias_act_dropout/bias_act_dropout_op.h"

namespace xformers::ops {

// dropout(activation(x w1^T + b1)) w2^T + b2; the last dropout is an operator of its own.
struct MlpInner {
  static constexpr const char* kName = "mlp_inner";
  using Result = at::Tensor;
  at::Tensor x, w1;
  OptionalTensor b1{};
  at::Tensor w2{};
  OptionalTensor b2{};
  ActivationName activation{};
  double p = 0;
  OptionalTensor philox_state{};

  static constexpr auto arguments() {
    using A = MlpInner;
    return std::tuple{arg("x", &A::x),   arg("w1", &A::w1),
                      arg("b1", &A::b1), arg("w2", &A::w2),
                      arg("b2", &A::b2), arg("activation", &A::activation),
                      arg("p", &A::p),   arg("philox_state", &A::philox_state)};
  }
  void check() const;
};

// Also returns z = x w1^T [rows, hidden], which backward needs.
struct MlpForward : MlpInner {
  static constexpr const char* kName = "mlp_forward";
  static constexpr const char* kResults[] = {"out", "z"};
  using Result = std::tuple<at::Tensor, at::Tensor>;
};

struct MlpBackward {
  static constexpr const char* kName = "mlp_backward";
  static constexpr const char* kResults[] = {"dx", "dw1", "db1", "dw2", "db2"};  // shape [0] where not needed
  using Result = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
  at::Tensor grad_out, x, z, w1;
  OptionalTensor b1{};
  at::Tensor w2{};
  ActivationName activation{};
  double p = 0;
  OptionalTensor philox_state{};
  bool need_dx = true, need_dw1 = true, need_db1 = true, need_dw2 = true, need_db2 = true;

  static constexpr auto arguments() {
    using A = MlpBackward;
    return std::tuple{arg("grad_out", &A::grad_out),
                      arg("x", &A::x),
                      arg("z", &A::z),
                      arg("w1", &A::w1),
                      arg("b1", &A::b1),
                      arg("w2", &A::w2),
                      arg("activation", &A::activation),
                      arg("p", &A::p),
                      arg("philox_state", &A::philox_state),
                      arg("need_dx", &A::need_dx),
                      arg("need_dw1", &A::need_dw1),
                      arg("need_db1", &A::need_db1),
                      arg("need_dw2", &A::need_dw2),
                      arg("need_db2", &A::need_db2)};
  }
};

}  // namespace xformers::ops
