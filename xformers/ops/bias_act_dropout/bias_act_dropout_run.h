// The fused layer on tensors of a device: from tensors to the parameters of its kernels. A `Device` has
//   forward(x, params), backward(x, params)   run its kernels where x is
//   bias_dtype(x, dtype)                      how they take, and give the gradient of, a bias of `dtype` beside x
#pragma once

#include "xformers/kernels/params/bias_act_dropout.h"
#include "xformers/ops/bias_act_dropout/bias_act_dropout_op.h"
#include "xformers/ops/common/dropout.h"
#include "xformers/ops/common/to_params.h"

namespace xformers::ops {

// [rows, width] with contiguous rows: a view where strides allow.
inline at::Tensor to_matrix(const OptionalTensor& t) {
  if (!t) return {};
  return with_unit_last_stride(t->numel() == 0 ? t->reshape({0, t->size(-1)}) : t->reshape({-1, t->size(-1)}));
}

inline BiasActDropoutShape to_fused_shape(const at::Tensor& matrix, Activation activation, const Dropout& dropout,
                                          at::ScalarType bias_dtype) {
  return {.dtype = to_dtype(matrix.scalar_type()),
          .rows = matrix.size(0),
          .width = matrix.size(1),
          .activation = activation,
          .dropout = dropout,
          .bias_dtype = to_dtype(bias_dtype)};
}

template <class Device>
at::Tensor run_bias_act_dropout(const BiasActDropout& args) {
  args.check();
  const at::ScalarType bias_dtype =
      args.bias ? Device::bias_dtype(args.x, args.bias->scalar_type()) : compute_dtype(args.x);
  const at::Tensor x = to_matrix(args.x), bias = in_dtype(args.bias, bias_dtype), residual = to_matrix(args.residual);
  at::Tensor out = args.empty();
  Device::forward(x, BiasActDropoutFwdParams{.shape = to_fused_shape(x, to_activation(args.kName, args.activation),
                                                                     to_dropout(args.p, args.philox_state), bias_dtype),
                                             .x = to_rows(x),
                                             .bias = data_or_null(bias),
                                             .residual = to_rows(residual),
                                             .out = {.data = out.mutable_data_ptr(), .stride = x.size(1)}});
  return out;
}

// dx: where it goes, contiguous, perhaps grad_out's memory; not read where it isn't needed. Returns dbias.
template <class Device>
at::Tensor run_bias_act_dropout_backward_into(const BiasActDropoutBackward& args, const at::Tensor& dx) {
  args.check();
  const Activation activation = to_activation(args.kName, args.activation);
  const bool needs_x = activation != Activation::kNone;
  const at::ScalarType dtype = Device::bias_dtype(args.grad_out, args.dbias_dtype());
  const at::Tensor grad_out = to_matrix(args.grad_out), x = needs_x ? to_matrix(args.x) : at::Tensor(),
                   bias = needs_x ? in_dtype(args.bias, dtype) : at::Tensor();
  at::Tensor dbias = args.empty_dbias(dtype);
  Device::backward(grad_out,
                   BiasActDropoutBwdParams{
                       .shape = to_fused_shape(grad_out, activation, to_dropout(args.p, args.philox_state), dtype),
                       .x = to_rows(x),
                       .bias = data_or_null(bias),
                       .dout = to_rows(grad_out),
                       .dx = args.need_dx ? Rows{.data = dx.mutable_data_ptr(), .stride = grad_out.size(1)} : Rows{},
                       .dbias = args.need_dbias ? dbias.mutable_data_ptr() : nullptr});
  return dbias.to(args.dbias_dtype());
}

template <class Device>
BiasActDropoutBackward::Result run_bias_act_dropout_backward(const BiasActDropoutBackward& args) {
  at::Tensor dx = empty_result(args.grad_out, args.need_dx);
  at::Tensor dbias = run_bias_act_dropout_backward_into<Device>(args, dx);
  return {dx, dbias};
}

template <class Device>
at::Tensor run_bias_act_dropout_backward_inplace(const BiasActDropoutBackwardInplace& args) {
  Check("bias_act_dropout_backward_").contiguous("grad_out", args.grad_out);
  return run_bias_act_dropout_backward_into<Device>(args, args.grad_out);
}

template <class Device>
void implement_bias_act_dropout(torch::Library& m) {
  implement<run_bias_act_dropout<Device>>(m);
  implement<run_bias_act_dropout_backward<Device>>(m);
  implement<run_bias_act_dropout_backward_inplace<Device>>(m);
}

}  // namespace xformers::ops
