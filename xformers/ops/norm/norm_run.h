// The normalisations on tensors of a device: from tensors to the parameters of its kernels. A `Device` has
//   forward(x, params), backward(x, params)   run its kernels where x is
//   weight_dtype(x, dtype)                    how they take, and give the gradients of, weights of `dtype` beside x
#pragma once

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "xformers/ops/common/to_params.h"
#include "xformers/ops/norm/norm_op.h"

namespace xformers::ops {

inline NormShape to_norm_shape(const at::Tensor& x, NormKind kind, double eps) {
  const int64_t width = x.size(-1);
  return {.dtype = to_dtype(x.scalar_type()),
          .kind = kind,
          .rows = width > 0 ? x.numel() / width : 0,
          .width = width,
          .eps = eps};
}

inline Rows to_norm_rows(const at::Tensor& contiguous) {
  return {.data = const_cast<void*>(contiguous.const_data_ptr()), .stride = contiguous.size(-1)};
}

// Undefined where there is none.
inline at::Tensor in_dtype(const OptionalTensor& weight, at::ScalarType dtype) {
  return weight ? weight->to(dtype).contiguous() : at::Tensor();
}

inline const void* data_or_null(const at::Tensor& t) { return t.defined() ? t.const_data_ptr() : nullptr; }

template <class Device>
at::Tensor run_norm(const at::Tensor& x, const at::Tensor& increment, const OptionalTensor& weight_arg,
                    const OptionalTensor& bias_arg, NormKind kind, double eps) {
  const at::ScalarType own = (weight_arg ? *weight_arg : bias_arg ? *bias_arg : x).scalar_type();
  const bool alike = !weight_arg || !bias_arg || weight_arg->scalar_type() == bias_arg->scalar_type();
  const at::ScalarType dtype = alike ? Device::weight_dtype(x, own) : compute_dtype(x);
  const at::Tensor weight = in_dtype(weight_arg, dtype), bias = in_dtype(bias_arg, dtype);
  at::Tensor out = at::empty(x.sizes(), x.options());
  Device::forward(x, NormFwdParams{.shape = to_norm_shape(x, kind, eps),
                                   .x = to_norm_rows(x),
                                   .increment = increment.defined() ? to_norm_rows(increment) : Rows{},
                                   .weight = data_or_null(weight),
                                   .bias = data_or_null(bias),
                                   .weight_dtype = to_dtype(dtype),
                                   .out = to_norm_rows(out)});
  return out;
}

struct NormGradients {
  at::Tensor dx, dweight, dbias;
};

template <class Device>
NormGradients run_norm_backward(const at::Tensor& grad_out_arg, const at::Tensor& x_arg,
                                const OptionalTensor& weight_arg, NormKind kind, double eps, bool need_dx,
                                bool need_dweight, bool need_dbias) {
  const at::Tensor grad_out = grad_out_arg.contiguous(), x = x_arg.contiguous();
  const at::ScalarType result_dtype = weight_dtype(x, weight_arg), dtype = Device::weight_dtype(x, result_dtype);
  const at::Tensor weight = in_dtype(weight_arg, dtype);
  const int64_t width = x.size(-1);
  at::Tensor dx = need_dx ? at::empty(x.sizes(), x.options()) : at::empty({0}, x.options());
  at::Tensor dweight = at::empty({need_dweight ? width : 0}, x.options().dtype(dtype));
  at::Tensor dbias = at::empty({need_dbias ? width : 0}, x.options().dtype(dtype));
  Device::backward(x, NormBwdParams{.shape = to_norm_shape(x, kind, eps),
                                    .x = to_norm_rows(x),
                                    .dout = to_norm_rows(grad_out),
                                    .weight = data_or_null(weight),
                                    .dx = need_dx ? to_norm_rows(dx) : Rows{},
                                    .dweight = need_dweight ? dweight.mutable_data_ptr() : nullptr,
                                    .dbias = need_dbias ? dbias.mutable_data_ptr() : nullptr,
                                    .weight_dtype = to_dtype(dtype)});
  return {dx, dweight.to(result_dtype), dbias.to(result_dtype)};
}

// ---- the operators ----
template <class Device>
at::Tensor rms_norm_on(const at::Tensor& x, const OptionalTensor& weight, double eps) {
  check_rms_norm("rms_norm", x, weight);
  return run_norm<Device>(x, at::Tensor(), weight, std::nullopt, NormKind::kRms, eps);
}

template <class Device>
at::Tensor rms_norm_add_on(const at::Tensor& x, const at::Tensor& y, const OptionalTensor& weight, double eps) {
  check_rms_norm_add(x, y, weight);
  return run_norm<Device>(x, y.is_alias_of(x) ? y.clone() : y, weight, std::nullopt, NormKind::kRms, eps);
}

template <class Device>
std::tuple<at::Tensor, at::Tensor> rms_norm_backward_on(const at::Tensor& grad_out, const at::Tensor& x,
                                                        const OptionalTensor& weight, double eps, bool need_dx,
                                                        bool need_dweight) {
  check_norm_backward("rms_norm_backward", grad_out, x, weight);
  const NormGradients grads =
      run_norm_backward<Device>(grad_out, x, weight, NormKind::kRms, eps, need_dx, need_dweight, false);
  return {grads.dx, grads.dweight};
}

template <class Device>
at::Tensor layer_norm_on(const at::Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias, double eps) {
  check_norm("layer_norm", x, weight, bias);
  return run_norm<Device>(x.contiguous(), at::Tensor(), weight, bias, NormKind::kLayer, eps);
}

template <class Device>
std::tuple<at::Tensor, at::Tensor, at::Tensor> layer_norm_backward_on(const at::Tensor& grad_out, const at::Tensor& x,
                                                                      const OptionalTensor& weight, double eps,
                                                                      bool need_dx, bool need_dweight,
                                                                      bool need_dbias) {
  check_norm_backward("layer_norm_backward", grad_out, x, weight);
  const NormGradients grads =
      run_norm_backward<Device>(grad_out, x, weight, NormKind::kLayer, eps, need_dx, need_dweight, need_dbias);
  return {grads.dx, grads.dweight, grads.dbias};
}

template <class Device>
void register_norms(torch::Library& m) {
  m.impl("rms_norm", rms_norm_on<Device>);
  m.impl("rms_norm_add_", rms_norm_add_on<Device>);
  m.impl("rms_norm_backward", rms_norm_backward_on<Device>);
  m.impl("layer_norm", layer_norm_on<Device>);
  m.impl("layer_norm_backward", layer_norm_backward_on<Device>);
}

}  // namespace xformers::ops
