// Schemas, public functions and checks.
#include "xformers/ops/norm/norm.h"

#include <torch/library.h>

#include <algorithm>

#include "xformers/ops/norm/norm_op.h"

namespace xformers::ops {

void check_norm(const char* where, const at::Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias) {
  const ArgumentCheck check(where);
  check.floating("x", x);
  if (x.dim() < 1) check.fail("x", describe(x), "at least one dimension", "pass [..., width]");
  const auto check_one = [&](const char* name, const OptionalTensor& t) {
    if (!t) return;
    check.shape(name, *t, {x.sym_size(-1)}, "one element per element of x's last dimension");
    check.floating(name, *t);
    check.same_device(name, *t, x, "x");
  };
  check_one("weight", weight);
  check_one("bias", bias);
}

void check_rms_norm(const char* where, const at::Tensor& x, const OptionalTensor& weight) {
  check_norm(where, x, weight);
  const ArgumentCheck check(where);
  check.contiguous("x", x);
  if (weight) check.contiguous("weight", *weight);
}

void check_rms_norm_add(const at::Tensor& x, const at::Tensor& y, const OptionalTensor& weight) {
  check_rms_norm("rms_norm_add", x, weight);
  const ArgumentCheck check("rms_norm_add");
  check.shape("y", y, x.sym_sizes(), "y is added to x without broadcasting");
  check.same_dtype("y", y, x, "x");
  check.same_device("y", y, x, "x");
  check.contiguous("y", y);
}

void check_norm_backward(const char* where, const at::Tensor& grad_out, const at::Tensor& x,
                         const OptionalTensor& weight) {
  check_norm(where, x, weight);
  const ArgumentCheck check(where);
  check.shape("grad_out", grad_out, x.sym_sizes(), "it has the shape of the result");
  check.same_dtype("grad_out", grad_out, x, "x");
  check.same_device("grad_out", grad_out, x, "x");
}

XFORMERS_TYPED_OP(rms_norm_op, RmsNorm, "rms_norm")
XFORMERS_TYPED_OP(rms_norm_add_op, RmsNormAdd, "rms_norm_add_")
XFORMERS_TYPED_OP(rms_norm_backward_op, RmsNormBackward, "rms_norm_backward")
XFORMERS_TYPED_OP(layer_norm_op, LayerNorm, "layer_norm")
XFORMERS_TYPED_OP(layer_norm_backward_op, LayerNormBackward, "layer_norm_backward")

at::Tensor rms_norm(const at::Tensor& x, const OptionalTensor& weight, double eps) {
  return rms_norm_op().call(x, weight, eps);
}

at::Tensor rms_norm_add(const at::Tensor& x, const at::Tensor& y, const OptionalTensor& weight, double eps) {
  return rms_norm_add_op().call(x, y, weight, eps);
}

at::Tensor layer_norm(const at::Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias, double eps) {
  return layer_norm_op().call(x, weight, bias, eps);
}

at::Tensor fused_layer_norm(const at::Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias, double eps) {
  return layer_norm(x, weight, bias, x.scalar_type() == at::kHalf ? std::max(eps, 1.6e-5) : eps);
}

}  // namespace xformers::ops

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  m.def("rms_norm(Tensor x, Tensor? weight=None, float eps=1e-6) -> Tensor", tags);
  m.def("rms_norm_add_(Tensor(a!) x, Tensor y, Tensor? weight=None, float eps=1e-6) -> Tensor", tags);
  m.def(
      "rms_norm_backward(Tensor grad_out, Tensor x, Tensor? weight=None, float eps=1e-6, bool need_dx=True, "
      "bool need_dweight=True) -> (Tensor dx, Tensor dweight)",
      tags);
  m.def("layer_norm(Tensor x, Tensor? weight=None, Tensor? bias=None, float eps=1e-6) -> Tensor", tags);
  m.def(
      "layer_norm_backward(Tensor grad_out, Tensor x, Tensor? weight=None, float eps=1e-6, bool need_dx=True, "
      "bool need_dweight=True, bool need_dbias=True) -> (Tensor dx, Tensor dweight, Tensor dbias)",
      tags);
  m.def("fused_layer_norm(Tensor x, Tensor? weight=None, Tensor? bias=None, float eps=1e-6) -> Tensor", tags);
}

TORCH_LIBRARY_IMPL(xformers, CompositeImplicitAutograd, m) {
  m.impl("fused_layer_norm", xformers::ops::fused_layer_norm);
}
