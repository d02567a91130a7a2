// Schemas, public functions and checks.
#include "xformers/ops/norm/norm.h"

#include <ATen/ops/add.h>

#include <algorithm>
#include <utility>

#include "xformers/ops/norm/norm_op.h"

namespace xformers::ops {
namespace {

void check_norm(const Check& check, const at::Tensor& x, const OptionalTensor& weight,
                const OptionalTensor& bias = std::nullopt) {
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

void check_rms_norm(const Check& check, const at::Tensor& x, const OptionalTensor& weight) {
  check_norm(check, x, weight);
  check.contiguous("x", x);
  if (weight) check.contiguous("weight", *weight);
}

void check_norm_backward(const Check& check, const NormBackward& args) {
  check_norm(check, args.x, args.weight);
  check.like("grad_out", args.grad_out, args.x, "x", "it has the shape of the result");
}

double fused_eps(const at::Tensor& x, double eps) { return x.scalar_type() == at::kHalf ? std::max(eps, 1.6e-5) : eps; }

}  // namespace

void RmsNorm::check() const { check_rms_norm(Check(kName), x, weight); }

void RmsNormAdd::check() const {
  const Check check("rms_norm_add");
  check_rms_norm(check, x, weight);
  check.like("y", y, x, "x", "y is added to x without broadcasting");
  check.contiguous("y", y);
}

void LayerNorm::check() const { check_norm(Check(kName), x, weight, bias); }
void LayerNormOfSum::check() const {
  const Check check(kName);
  check_norm(check, x, weight, bias);
  check.like("residual", residual, x, "x", "it is added to x without broadcasting");
}
void RmsNormBackward::check() const { check_norm_backward(Check(kName), *this); }
void LayerNormBackward::check() const { check_norm_backward(Check(kName), *this); }

at::Tensor rms_norm(const at::Tensor& x, const OptionalTensor& weight, double eps) {
  return call(RmsNorm{x, weight, eps});
}

at::Tensor rms_norm_add(const at::Tensor& x, const at::Tensor& y, const OptionalTensor& weight, double eps) {
  return call(RmsNormAdd{x, y, weight, eps});
}

at::Tensor layer_norm(const at::Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias, double eps) {
  return call(LayerNorm{x, weight, bias, eps});
}

std::tuple<at::Tensor, at::Tensor> layer_norm_of_sum(const at::Tensor& x, const at::Tensor& residual,
                                                     const OptionalTensor& weight, const OptionalTensor& bias,
                                                     double eps, double scale) {
  return call(LayerNormOfSum{x, residual, weight, bias, eps, scale});
}

at::Tensor fused_layer_norm(const at::Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias, double eps) {
  return layer_norm(x, weight, bias, fused_eps(x, eps));
}

std::tuple<at::Tensor, at::Tensor> fused_layer_norm_of_sum(const at::Tensor& x, const at::Tensor& residual,
                                                           const OptionalTensor& weight, const OptionalTensor& bias,
                                                           double eps, double scale) {
  if (x.scalar_type() != residual.scalar_type() || x.sym_sizes() != residual.sym_sizes()) {
    at::Tensor sum = at::add(x, residual, scale);
    at::Tensor out = fused_layer_norm(sum, weight, bias, eps);
    return {std::move(out), std::move(sum)};
  }
  return layer_norm_of_sum(x, residual, weight, bias, fused_eps(x, eps), scale);
}

}  // namespace xformers::ops

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  using namespace xformers::ops;
  define<RmsNorm, RmsNormAdd, RmsNormBackward, LayerNorm, LayerNormOfSum, LayerNormBackward>(m);
  m.def("fused_layer_norm(Tensor x, Tensor? weight=None, Tensor? bias=None, float eps=1e-6) -> Tensor",
        {at::Tag::pt2_compliant_tag});
  m.def(
      "fused_layer_norm_of_sum(Tensor x, Tensor residual, Tensor? weight=None, Tensor? bias=None, float eps=1e-6, "
      "float scale=1.0) -> (Tensor out, Tensor sum)",
      {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(xformers, CompositeImplicitAutograd, m) {
  m.impl("fused_layer_norm", xformers::ops::fused_layer_norm);
  m.impl("fused_layer_norm_of_sum", xformers::ops::fused_layer_norm_of_sum);
}
