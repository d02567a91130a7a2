// The arguments of the fused layer's operators.
#pragma once

#include "xformers/kernels/params/bias_act_dropout.h"
#include "xformers/ops/common/operator.h"

namespace xformers::ops {

// relu, leaky_relu, gelu, squared_relu, smelu, star_relu, or none.
using ActivationName = std::optional<std::string_view>;
Activation to_activation(const char* where, ActivationName name);
ActivationName name_of(Activation activation);

struct BiasActDropout {
  static constexpr const char* kName = "bias_act_dropout";
  using Result = at::Tensor;
  at::Tensor x;
  OptionalTensor bias{}, residual{};
  ActivationName activation{};
  double p = 0;
  OptionalTensor philox_state{};

  static constexpr auto arguments() {
    using A = BiasActDropout;
    return std::tuple{arg("x", &A::x),
                      arg("bias", &A::bias),
                      arg("residual", &A::residual),
                      arg("activation", &A::activation),
                      arg("p", &A::p),
                      arg("philox_state", &A::philox_state)};
  }
  void check() const;
  at::Tensor empty() const { return empty_result(x); }
};

// x may be missing without an activation; bias also says the dtype of dbias, which without one is that of grad_out.
struct BiasActDropoutBackward {
  static constexpr const char* kName = "bias_act_dropout_backward";
  static constexpr const char* kResults[] = {"dx", "dbias"};  // shape [0] where not needed
  using Result = std::tuple<at::Tensor, at::Tensor>;
  at::Tensor grad_out;
  OptionalTensor x{}, bias{};
  ActivationName activation{};
  double p = 0;
  OptionalTensor philox_state{};
  bool need_dx = true, need_dbias = true;

  template <class A>
  static constexpr auto arguments_of(bool writes_grad_out) {
    auto grad_out = arg("grad_out", &A::grad_out);
    return std::tuple{writes_grad_out ? grad_out.written() : grad_out,
                      arg("x", &A::x),
                      arg("bias", &A::bias),
                      arg("activation", &A::activation),
                      arg("p", &A::p),
                      arg("philox_state", &A::philox_state),
                      arg("need_dx", &A::need_dx),
                      arg("need_dbias", &A::need_dbias)};
  }
  static constexpr auto arguments() { return arguments_of<BiasActDropoutBackward>(/*writes_grad_out=*/false); }
  void check() const;
  at::ScalarType dbias_dtype() const { return (bias ? *bias : grad_out).scalar_type(); }
  at::Tensor empty_dbias(at::ScalarType dtype) const {
    return empty_result({grad_out.sym_size(-1)}, grad_out.options().dtype(dtype), need_dbias);
  }
  Result empty() const { return {empty_result(grad_out, need_dx), empty_dbias(dbias_dtype())}; }
};

// The same with dx in the memory of grad_out, which is contiguous; returns dbias.
struct BiasActDropoutBackwardInplace : BiasActDropoutBackward {
  static constexpr const char* kName = "bias_act_dropout_backward_";
  using Result = at::Tensor;
  static constexpr auto arguments() { return arguments_of<BiasActDropoutBackward>(/*writes_grad_out=*/true); }
  at::Tensor empty() const { return empty_dbias(dbias_dtype()); }
};

}  // namespace xformers::ops
