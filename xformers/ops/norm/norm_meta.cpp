// Shapes without data; sizes stay symbolic.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "xformers/ops/norm/norm_op.h"

namespace xformers::ops {
namespace {

at::Tensor empty_like(const at::Tensor& t, bool wanted = true) {
  return wanted ? at::empty_symint(t.sym_sizes(), t.options()) : at::empty({0}, t.options());
}

at::Tensor empty_weight(const at::Tensor& x, const OptionalTensor& weight, bool wanted) {
  const auto options = x.options().dtype(weight_dtype(x, weight));
  return wanted ? at::empty_symint({x.sym_size(-1)}, options) : at::empty({0}, options);
}

at::Tensor rms_norm_meta(const at::Tensor& x, const OptionalTensor& weight, double /*eps*/) {
  check_rms_norm("rms_norm", x, weight);
  return empty_like(x);
}

at::Tensor rms_norm_add_meta(const at::Tensor& x, const at::Tensor& y, const OptionalTensor& weight, double /*eps*/) {
  check_rms_norm_add(x, y, weight);
  return empty_like(x);
}

std::tuple<at::Tensor, at::Tensor> rms_norm_backward_meta(const at::Tensor& grad_out, const at::Tensor& x,
                                                          const OptionalTensor& weight, double /*eps*/, bool need_dx,
                                                          bool need_dweight) {
  check_norm_backward("rms_norm_backward", grad_out, x, weight);
  return {empty_like(x, need_dx), empty_weight(x, weight, need_dweight)};
}

at::Tensor layer_norm_meta(const at::Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                           double /*eps*/) {
  check_norm("layer_norm", x, weight, bias);
  return empty_like(x);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> layer_norm_backward_meta(const at::Tensor& grad_out, const at::Tensor& x,
                                                                        const OptionalTensor& weight, double /*eps*/,
                                                                        bool need_dx, bool need_dweight,
                                                                        bool need_dbias) {
  check_norm_backward("layer_norm_backward", grad_out, x, weight);
  return {empty_like(x, need_dx), empty_weight(x, weight, need_dweight), empty_weight(x, weight, need_dbias)};
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, Meta, m) {
  m.impl("rms_norm", xformers::ops::rms_norm_meta);
  m.impl("rms_norm_add_", xformers::ops::rms_norm_add_meta);
  m.impl("rms_norm_backward", xformers::ops::rms_norm_backward_meta);
  m.impl("layer_norm", xformers::ops::layer_norm_meta);
  m.impl("layer_norm_backward", xformers::ops::layer_norm_backward_meta);
}
