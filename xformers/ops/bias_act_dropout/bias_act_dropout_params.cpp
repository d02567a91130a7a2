// Calls lowered to params, and the operators without data (meta).
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "xformers/ops/bias_act_dropout/bias_act_dropout_op.h"
#include "xformers/ops/common/dropout.h"
#include "xformers/ops/common/to_params.h"

namespace xformers::ops {
namespace {

// [rows, width] with contiguous rows: a view where strides allow.
at::Tensor to_matrix(const at::Tensor& t) {
  if (!t.defined()) return t;
  const at::Tensor matrix = t.numel() == 0 ? t.reshape({0, t.size(-1)}) : t.reshape({-1, t.size(-1)});
  return matrix.stride(1) == 1 || matrix.size(1) <= 1 ? matrix : matrix.contiguous();
}
at::Tensor to_matrix(const OptionalTensor& t) { return to_matrix(t.value_or(at::Tensor())); }

Rows to_rows(const at::Tensor& matrix) {
  if (!matrix.defined()) return {};
  return {.data = const_cast<void*>(matrix.const_data_ptr()), .stride = matrix.stride(0)};
}

// The dtype that bias and dbias of `wanted` have in the kernel.
at::ScalarType kernel_dtype(at::ScalarType wanted, const at::Tensor& x, BiasTypes types) {
  const bool is_16_bit = wanted == at::kBFloat16 || wanted == at::kHalf;
  const bool as_it_is = types == BiasTypes::kAlso16Bit && is_16_bit && compute_dtype(x) != at::kDouble;
  return as_it_is ? wanted : compute_dtype(x);
}

at::Tensor to_kernel_dtype(const OptionalTensor& bias, const at::Tensor& x, BiasTypes types) {
  return bias ? bias->to(kernel_dtype(bias->scalar_type(), x, types)).contiguous() : at::Tensor();
}

BiasActDropoutShape to_shape(const at::Tensor& matrix, Activation activation, const Dropout& dropout,
                             at::ScalarType bias_dtype) {
  return {.dtype = to_dtype(matrix.scalar_type()),
          .rows = matrix.size(0),
          .width = matrix.size(1),
          .activation = activation,
          .dropout = dropout,
          .bias_dtype = to_dtype(bias_dtype)};
}

at::ScalarType dbias_dtype(const BiasActDropoutBackwardArgs& args) {
  return args.bias ? args.bias->scalar_type() : args.grad_out.scalar_type();
}

at::Tensor forward_meta(const BiasActDropoutArgs& args) {
  check_bias_act_dropout(args);
  return at::empty_symint(args.x.sym_sizes(), args.x.options());
}

std::tuple<at::Tensor, at::Tensor> backward_meta(const BiasActDropoutBackwardArgs& args) {
  check_bias_act_dropout_backward(args);
  const auto& options = args.grad_out.options();
  const auto bias_options = options.dtype(dbias_dtype(args));
  return {
      args.need_dx ? at::empty_symint(args.grad_out.sym_sizes(), options) : at::empty({0}, options),
      args.need_dbias ? at::empty_symint({args.grad_out.sym_size(-1)}, bias_options) : at::empty({0}, bias_options)};
}

}  // namespace

BiasActDropoutForwardCall prepare_bias_act_dropout(const BiasActDropoutArgs& args, BiasTypes bias_types) {
  check_bias_act_dropout(args);
  BiasActDropoutForwardCall call{.x = to_matrix(args.x),
                                 .bias = to_kernel_dtype(args.bias, args.x, bias_types),
                                 .residual = to_matrix(args.residual),
                                 .philox_state = args.philox_state.value_or(at::Tensor()),
                                 .out = at::empty(args.x.sizes(), args.x.options()),
                                 .params = {}};
  call.params = {.shape = to_shape(call.x, to_activation("bias_act_dropout", args.activation),
                                   to_dropout(args.p, args.philox_state),
                                   call.bias.defined() ? call.bias.scalar_type() : compute_dtype(call.x)),
                 .x = to_rows(call.x),
                 .bias = call.bias.defined() ? call.bias.const_data_ptr() : nullptr,
                 .residual = to_rows(call.residual),
                 .out = {.data = call.out.mutable_data_ptr(), .stride = call.x.size(1)}};
  return call;
}

BiasActDropoutBackwardCall prepare_bias_act_dropout_backward(const BiasActDropoutBackwardArgs& args,
                                                             BiasTypes bias_types) {
  check_bias_act_dropout_backward(args);
  const Activation activation = to_activation("bias_act_dropout_backward", args.activation);
  const bool needs_x = activation != Activation::kNone;
  const auto options = args.grad_out.options();
  const at::ScalarType in_kernel = kernel_dtype(dbias_dtype(args), args.grad_out, bias_types);
  BiasActDropoutBackwardCall call{
      .grad_out = to_matrix(args.grad_out),
      .x = needs_x ? to_matrix(args.x) : at::Tensor(),
      .bias = needs_x ? to_kernel_dtype(args.bias, args.grad_out, bias_types) : at::Tensor(),
      .philox_state = args.philox_state.value_or(at::Tensor()),
      .dx = args.need_dx ? at::empty(args.grad_out.sizes(), options) : at::empty({0}, options),
      .dbias = at::empty({args.need_dbias ? args.grad_out.size(-1) : 0}, options.dtype(in_kernel)),
      .params = {},
      .dbias_dtype = dbias_dtype(args)};
  call.params = {
      .shape = to_shape(call.grad_out, activation, to_dropout(args.p, args.philox_state), in_kernel),
      .x = to_rows(call.x),
      .bias = call.bias.defined() ? call.bias.const_data_ptr() : nullptr,
      .dout = to_rows(call.grad_out),
      .dx = args.need_dx ? Rows{.data = call.dx.mutable_data_ptr(), .stride = call.grad_out.size(1)} : Rows{},
      .dbias = args.need_dbias ? call.dbias.mutable_data_ptr() : nullptr};
  return call;
}

std::tuple<at::Tensor, at::Tensor> BiasActDropoutBackwardCall::results() const { return {dx, dbias.to(dbias_dtype)}; }

}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, Meta, m) {
  m.impl("bias_act_dropout", xformers::ops::BiasActDropoutOp::entry<xformers::ops::forward_meta>);
  m.impl("bias_act_dropout_backward", xformers::ops::BiasActDropoutBackwardOp::entry<xformers::ops::backward_meta>);
}
