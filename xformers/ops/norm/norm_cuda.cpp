// The normalisations on CUDA tensors: on the current stream of the tensors' device, without waiting for it.
#include "xformers/kernels/cuda/norm/norm_cuda.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "xformers/ops/common/cuda_call.h"
#include "xformers/ops/common/to_params.h"
#include "xformers/ops/norm/norm_op.h"

namespace xformers::ops {
namespace {

NormShape to_shape(const at::Tensor& x, NormKind kind, double eps) {
  const int64_t width = x.size(-1);
  return {.dtype = to_dtype(x.scalar_type()),
          .kind = kind,
          .rows = width > 0 ? x.numel() / width : 0,
          .width = width,
          .eps = eps};
}

Rows to_rows(const at::Tensor& contiguous) {
  return {.data = const_cast<void*>(contiguous.const_data_ptr()), .stride = contiguous.size(-1)};
}

// Kernels read and write weights of x's own type as they are: a conversion would be a kernel of its own.
at::ScalarType kernel_weight_dtype(const at::Tensor& x, at::ScalarType weight) {
  return weight == x.scalar_type() ? weight : compute_dtype(x);
}

at::Tensor in_dtype(const OptionalTensor& weight, at::ScalarType dtype) {
  return weight ? weight->to(dtype).contiguous() : at::Tensor();
}

const void* data_or_null(const at::Tensor& t) { return t.defined() ? t.const_data_ptr() : nullptr; }

at::Tensor forward(const at::Tensor& x, const at::Tensor& increment, const OptionalTensor& weight_arg,
                   const OptionalTensor& bias_arg, NormKind kind, double eps) {
  CudaCall call(x.device());
  const at::ScalarType own = (weight_arg ? *weight_arg : bias_arg ? *bias_arg : x).scalar_type();
  const bool same = !weight_arg || !bias_arg || weight_arg->scalar_type() == bias_arg->scalar_type();
  const at::ScalarType dtype = same ? kernel_weight_dtype(x, own) : compute_dtype(x);
  const at::Tensor weight = in_dtype(weight_arg, dtype), bias = in_dtype(bias_arg, dtype);
  at::Tensor out = at::empty(x.sizes(), x.options());
  cuda::norm_forward({.shape = to_shape(x, kind, eps),
                      .x = to_rows(x),
                      .increment = increment.defined() ? to_rows(increment) : Rows{},
                      .weight = data_or_null(weight),
                      .bias = data_or_null(bias),
                      .weight_dtype = to_dtype(dtype),
                      .out = to_rows(out)},
                     call.stream());
  return out;
}

struct Gradients {
  at::Tensor dx, dweight, dbias;
};

Gradients backward(const at::Tensor& grad_out_arg, const at::Tensor& x_arg, const OptionalTensor& weight_arg,
                   NormKind kind, double eps, bool need_dx, bool need_dweight, bool need_dbias) {
  CudaCall call(x_arg.device());
  const at::Tensor grad_out = grad_out_arg.contiguous(), x = x_arg.contiguous();
  const at::ScalarType result_dtype = weight_dtype(x, weight_arg), dtype = kernel_weight_dtype(x, result_dtype);
  const at::Tensor weight = in_dtype(weight_arg, dtype);
  const int64_t width = x.size(-1);
  at::Tensor dx = need_dx ? at::empty(x.sizes(), x.options()) : at::empty({0}, x.options());
  at::Tensor dweight = at::empty({need_dweight ? width : 0}, x.options().dtype(dtype));
  at::Tensor dbias = at::empty({need_dbias ? width : 0}, x.options().dtype(dtype));
  const NormBwdParams params{.shape = to_shape(x, kind, eps),
                             .x = to_rows(x),
                             .dout = to_rows(grad_out),
                             .weight = data_or_null(weight),
                             .dx = need_dx ? to_rows(dx) : Rows{},
                             .dweight = need_dweight ? dweight.mutable_data_ptr() : nullptr,
                             .dbias = need_dbias ? dbias.mutable_data_ptr() : nullptr,
                             .weight_dtype = to_dtype(dtype)};
  cuda::norm_backward(params, call.stream(cuda::norm_backward_workspace(params)));
  return {dx, dweight.to(result_dtype), dbias.to(result_dtype)};
}

at::Tensor rms_norm_cuda(const at::Tensor& x, const OptionalTensor& weight, double eps) {
  check_rms_norm("rms_norm", x, weight);
  return forward(x, at::Tensor(), weight, std::nullopt, NormKind::kRms, eps);
}

at::Tensor rms_norm_add_cuda(const at::Tensor& x, const at::Tensor& y, const OptionalTensor& weight, double eps) {
  check_rms_norm_add(x, y, weight);
  return forward(x, y.is_alias_of(x) ? y.clone() : y, weight, std::nullopt, NormKind::kRms, eps);
}

std::tuple<at::Tensor, at::Tensor> rms_norm_backward_cuda(const at::Tensor& grad_out, const at::Tensor& x,
                                                          const OptionalTensor& weight, double eps, bool need_dx,
                                                          bool need_dweight) {
  check_norm_backward("rms_norm_backward", grad_out, x, weight);
  const Gradients grads = backward(grad_out, x, weight, NormKind::kRms, eps, need_dx, need_dweight, false);
  return {grads.dx, grads.dweight};
}

at::Tensor layer_norm_cuda(const at::Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias, double eps) {
  check_norm("layer_norm", x, weight, bias);
  return forward(x.contiguous(), at::Tensor(), weight, bias, NormKind::kLayer, eps);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> layer_norm_backward_cuda(const at::Tensor& grad_out, const at::Tensor& x,
                                                                        const OptionalTensor& weight, double eps,
                                                                        bool need_dx, bool need_dweight,
                                                                        bool need_dbias) {
  check_norm_backward("layer_norm_backward", grad_out, x, weight);
  const Gradients grads = backward(grad_out, x, weight, NormKind::kLayer, eps, need_dx, need_dweight, need_dbias);
  return {grads.dx, grads.dweight, grads.dbias};
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, CUDA, m) {
  m.impl("rms_norm", xformers::ops::rms_norm_cuda);
  m.impl("rms_norm_add_", xformers::ops::rms_norm_add_cuda);
  m.impl("rms_norm_backward", xformers::ops::rms_norm_backward_cuda);
  m.impl("layer_norm", xformers::ops::layer_norm_cuda);
  m.impl("layer_norm_backward", xformers::ops::layer_norm_backward_cuda);
}
