// The normalisations on tensors of a device: from tensors to the parameters of its kernels. A `Device` has
//   forward(x, params), backward(x, params)   run its kernels where x is
//   weight_dtype(x, dtype)                    how they take, and give the gradients of, weights of `dtype` beside x
#pragma once

#include "xformers/kernels/params/norm.h"
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

// The dtype in which a device takes weight and bias, one for both.
template <class Device>
at::ScalarType affine_dtype(const at::Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias) {
  const at::ScalarType own = (weight ? *weight : bias ? *bias : x).scalar_type();
  const bool alike = !weight || !bias || weight->scalar_type() == bias->scalar_type();
  return alike ? Device::weight_dtype(x, own) : compute_dtype(x);
}

// Into `out`, of contiguous x; `increment`: undefined, or what is added to x first.
template <class Device>
void run_norm(const at::Tensor& out, const at::Tensor& x, const at::Tensor& increment, const OptionalTensor& weight_arg,
              const OptionalTensor& bias_arg, NormKind kind, double eps) {
  const at::ScalarType dtype = affine_dtype<Device>(x, weight_arg, bias_arg);
  const at::Tensor weight = in_dtype(weight_arg, dtype), bias = in_dtype(bias_arg, dtype);
  Device::forward(x, NormFwdParams{.shape = to_norm_shape(x, kind, eps),
                                   .x = to_norm_rows(x),
                                   .increment = increment.defined() ? to_norm_rows(increment) : Rows{},
                                   .weight = data_or_null(weight),
                                   .bias = data_or_null(bias),
                                   .weight_dtype = to_dtype(dtype),
                                   .out = to_norm_rows(out)});
}

// (dx, dweight, dbias)
template <class Device>
LayerNormBackward::Result run_norm_backward(const NormBackward& args, NormKind kind, bool need_dbias) {
  const at::Tensor grad_out = args.grad_out.contiguous(), x = args.x.contiguous();
  const at::ScalarType result_dtype = args.weight_dtype(), dtype = Device::weight_dtype(x, result_dtype);
  const at::Tensor weight = in_dtype(args.weight, dtype);
  at::Tensor dx = args.empty_dx(), dweight = args.empty_dweight(args.need_dweight, dtype),
             dbias = args.empty_dweight(need_dbias, dtype);
  Device::backward(x, NormBwdParams{.shape = to_norm_shape(x, kind, args.eps),
                                    .x = to_norm_rows(x),
                                    .dout = to_norm_rows(grad_out),
                                    .weight = data_or_null(weight),
                                    .dx = args.need_dx ? to_norm_rows(dx) : Rows{},
                                    .dweight = args.need_dweight ? dweight.mutable_data_ptr() : nullptr,
                                    .dbias = need_dbias ? dbias.mutable_data_ptr() : nullptr,
                                    .weight_dtype = to_dtype(dtype)});
  return {dx, dweight.to(result_dtype), dbias.to(result_dtype)};
}

// ---- the operators ----
template <class Device>
at::Tensor run_rms_norm(const RmsNorm& args) {
  args.check();
  at::Tensor out = args.empty();
  run_norm<Device>(out, args.x, at::Tensor(), args.weight, std::nullopt, NormKind::kRms, args.eps);
  return out;
}

template <class Device>
at::Tensor run_rms_norm_add(const RmsNormAdd& args) {
  args.check();
  at::Tensor out = args.empty();
  const at::Tensor y = args.y.is_alias_of(args.x) ? args.y.clone() : args.y;
  run_norm<Device>(out, args.x, y, args.weight, std::nullopt, NormKind::kRms, args.eps);
  return out;
}

template <class Device>
RmsNormBackward::Result run_rms_norm_backward(const RmsNormBackward& args) {
  args.check();
  const auto [dx, dweight, none] = run_norm_backward<Device>(args, NormKind::kRms, /*need_dbias=*/false);
  return {dx, dweight};
}

template <class Device>
at::Tensor run_layer_norm(const LayerNorm& args) {
  args.check();
  at::Tensor out = args.empty();
  run_norm<Device>(out, args.x.contiguous(), at::Tensor(), args.weight, args.bias, NormKind::kLayer, args.eps);
  return out;
}

template <class Device>
LayerNormBackward::Result run_layer_norm_backward(const LayerNormBackward& args) {
  args.check();
  return run_norm_backward<Device>(args, NormKind::kLayer, args.need_dbias);
}

template <class Device>
void implement_norms(torch::Library& m) {
  implement<run_rms_norm<Device>>(m);
  implement<run_rms_norm_add<Device>>(m);
  implement<run_rms_norm_backward<Device>>(m);
  implement<run_layer_norm<Device>>(m);
  implement<run_layer_norm_backward<Device>>(m);
}

}  // namespace xformers::ops
