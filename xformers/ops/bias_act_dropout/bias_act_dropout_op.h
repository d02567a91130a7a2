// The fused layer's operators by their argument lists, and what all devices share: checks, and calls lowered to params.
#pragma once

#include <optional>
#include <string_view>
#include <tuple>

#include "xformers/kernels/params/bias_act_dropout.h"
#include "xformers/ops/common/op_args.h"

namespace xformers::ops {

// relu, leaky_relu, gelu, squared_relu, smelu, star_relu, or none.
using ActivationName = std::optional<std::string_view>;
Activation to_activation(const char* where, ActivationName name);
ActivationName name_of(Activation activation);

struct BiasActDropoutArgs {
  at::Tensor x;
  OptionalTensor bias, residual;
  ActivationName activation;
  double p = 0;
  OptionalTensor philox_state;
};
using BiasActDropoutOp = Operator<BiasActDropoutArgs, at::Tensor, &BiasActDropoutArgs::x, &BiasActDropoutArgs::bias,
                                  &BiasActDropoutArgs::residual, &BiasActDropoutArgs::activation,
                                  &BiasActDropoutArgs::p, &BiasActDropoutArgs::philox_state>;
const BiasActDropoutOp::Handle& bias_act_dropout_op();

// (dx, dbias); shape [0] where not needed. x may be missing without an activation; bias also says the dtype of dbias,
// which without one is that of grad_out.
struct BiasActDropoutBackwardArgs {
  at::Tensor grad_out;
  OptionalTensor x, bias;
  ActivationName activation;
  double p = 0;
  OptionalTensor philox_state;
  bool need_dx = true, need_dbias = true;
};
using BiasActDropoutBackwardOp =
    Operator<BiasActDropoutBackwardArgs, std::tuple<at::Tensor, at::Tensor>, &BiasActDropoutBackwardArgs::grad_out,
             &BiasActDropoutBackwardArgs::x, &BiasActDropoutBackwardArgs::bias, &BiasActDropoutBackwardArgs::activation,
             &BiasActDropoutBackwardArgs::p, &BiasActDropoutBackwardArgs::philox_state,
             &BiasActDropoutBackwardArgs::need_dx, &BiasActDropoutBackwardArgs::need_dbias>;
const BiasActDropoutBackwardOp::Handle& bias_act_dropout_backward_op();

void check_bias_act_dropout(const BiasActDropoutArgs& args);
void check_bias_act_dropout_backward(const BiasActDropoutBackwardArgs& args);

// A checked call, its results allocated; holds on to the tensors that the pointers of params point into.
struct BiasActDropoutForwardCall {
  at::Tensor x, bias, residual, philox_state, out;
  BiasActDropoutFwdParams params;
};
struct BiasActDropoutBackwardCall {
  at::Tensor grad_out, x, bias, philox_state, dx, dbias;  // dbias as the kernel writes it
  BiasActDropoutBwdParams params;
  std::tuple<at::Tensor, at::Tensor> results() const;  // dbias in its own dtype

  at::ScalarType dbias_dtype;
};
// What kernels take for bias and dbias: the compute type, or 16-bit types too.
enum class BiasTypes { kCompute, kAlso16Bit };
BiasActDropoutForwardCall prepare_bias_act_dropout(const BiasActDropoutArgs& args, BiasTypes bias_types);
BiasActDropoutBackwardCall prepare_bias_act_dropout_backward(const BiasActDropoutBackwardArgs& args,
                                                             BiasTypes bias_types);

}  // namespace xformers::ops
