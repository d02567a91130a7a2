// Schemas, public functions and checks.
#include "xformers/ops/bias_act_dropout/bias_act_dropout.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/result_type.h>

#include <array>

#include "xformers/ops/bias_act_dropout/bias_act_dropout_op.h"
#include "xformers/ops/common/dropout.h"
#include "xformers/ops/common/random.h"

namespace xformers::ops {
namespace {

constexpr std::array<std::string_view, 8> kActivationNames = {"none",         "relu",  "leaky_relu", "gelu",
                                                              "squared_relu", "smelu", "star_relu",  "gelu_exact"};

void check_bias(const Check& check, const OptionalTensor& bias, const at::Tensor& x, const char* x_name) {
  if (x.dim() < 1) check.fail(x_name, describe(x), "at least one dimension", "pass [..., width]");
  if (!bias) return;
  check.shape("bias", *bias, {x.sym_size(-1)}, "one element per element of the last dimension");
  check.floating("bias", *bias);
  check.same_device("bias", *bias, x, x_name);
}

void check_has_kernel(const Check& check, Activation activation, const at::Tensor& x) {
  if (activation != Activation::kGeluExact || !x.is_cuda()) return;
  check.fail("activation", "'gelu_exact' on " + x.device().str(), "one that CUDA kernels have",
             "use 'gelu', its tanh form, or elementwise_dropout, which applies the exact one before");
}

}  // namespace

Activation to_activation(const char* where, ActivationName name) {
  if (!name) return Activation::kNone;
  for (size_t i = 0; i < kActivationNames.size(); ++i) {
    if (*name == kActivationNames[i]) return static_cast<Activation>(i);
  }
  std::string expected = "None";
  for (size_t i = 1; i < kActivationNames.size(); ++i) expected += ", " + std::string(kActivationNames[i]);
  Check(where).fail("activation", "'" + std::string(*name) + "'", "one of " + expected,
                    "build_activation() has the same names");
}

ActivationName name_of(Activation activation) {
  if (activation == Activation::kNone) return std::nullopt;
  return kActivationNames[static_cast<size_t>(activation)];
}

void BiasActDropout::check() const {
  const Check check(kName);
  check.floating("x", x);
  check_bias(check, bias, x, "x");
  if (residual) check.like("residual", *residual, x, "x", "both have one shape");
  check_dropout(check, p, philox_state, x, "x");
  check_has_kernel(check, to_activation(kName, activation), x);
}

void BiasActDropoutBackward::check() const {
  const Check check(kName);
  check.floating("grad_out", grad_out);
  check_bias(check, bias, grad_out, "grad_out");
  if (x) check.like("x", *x, grad_out, "grad_out", "both have one shape");
  check_dropout(check, p, philox_state, grad_out, "grad_out");
  check_has_kernel(check, to_activation(kName, activation), grad_out);
  if (to_activation(kName, activation) != Activation::kNone && !x) {
    check.fail("x", "None", "the input of the activation", "pass x, or activation=None");
  }
}

at::Tensor bias_act_dropout(const at::Tensor& x, const OptionalTensor& bias, const OptionalTensor& residual,
                            Activation activation, double p, const OptionalTensor& philox_state) {
  return call(BiasActDropout{x, bias, residual, name_of(activation), p, philox_state});
}

at::Tensor fused_dropout(const at::Tensor& x, double p, const OptionalTensor& bias, Activation activation,
                         const OptionalTensor& residual) {
  return bias_act_dropout(x, bias, residual, activation, p, draw_dropout_state(p, x.device()));
}

at::Tensor elementwise_dropout(const at::Tensor& x, double p, const OptionalTensor& bias, Activation activation,
                               const OptionalTensor& residual) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  const at::ScalarType dtype = residual ? at::result_type(x, *residual) : x.scalar_type();
  if (activation == Activation::kGelu && x.is_cpu()) activation = Activation::kGeluExact;
  if (activation != Activation::kGelu) {
    return fused_dropout(x.to(dtype), p, bias, activation, residual ? OptionalTensor(residual->to(dtype)) : residual);
  }
  // The CUDA kernels have gelu's tanh form alone; rounded once, at the end.
  const at::ScalarType wide = compute_dtype(dtype);
  const at::Tensor z = bias ? x.to(wide) + *bias : x.to(wide);
  return fused_dropout(at::gelu(z).to(wide), p, std::nullopt, Activation::kNone,
                       residual ? OptionalTensor(residual->to(wide)) : residual)
      .to(dtype);
}

// Without an activation the product's own epilogue adds the bias. With one, autograd keeps what the activation was
// given, and only where it needs it.
at::Tensor fused_linear(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias,
                        Activation activation) {
  if (activation == Activation::kNone) return at::linear(x, weight, bias);
  return bias_act_dropout(at::linear(x, weight), bias, std::nullopt, activation);
}

namespace {

at::Tensor fused_dropout_by_name(const at::Tensor& x, double p, const OptionalTensor& bias, ActivationName activation,
                                 const OptionalTensor& residual) {
  return fused_dropout(x, p, bias, to_activation("fused_dropout", activation), residual);
}

at::Tensor elementwise_dropout_by_name(const at::Tensor& x, double p, const OptionalTensor& bias,
                                       ActivationName activation, const OptionalTensor& residual) {
  return elementwise_dropout(x, p, bias, to_activation("elementwise_dropout", activation), residual);
}

at::Tensor fused_linear_by_name(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias,
                                ActivationName activation) {
  return fused_linear(x, weight, bias, to_activation("fused_linear", activation));
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  xformers::ops::define<xformers::ops::BiasActDropout, xformers::ops::BiasActDropoutBackward,
                        xformers::ops::BiasActDropoutBackwardInplace>(m);
  for (const std::string name : {"fused_dropout", "elementwise_dropout"}) {
    m.def((name + "(Tensor x, float p, Tensor? bias=None, str? activation=None, Tensor? residual=None) -> Tensor")
              .c_str(),
          tags);
  }
  m.def("fused_linear(Tensor x, Tensor weight, Tensor? bias=None, str? activation=None) -> Tensor", tags);
}

// Made of the operators above and of LibTorch's, which bring gradients, autocast and meta with them.
TORCH_LIBRARY_IMPL(xformers, CompositeImplicitAutograd, m) {
  m.impl("fused_dropout", xformers::ops::fused_dropout_by_name);
  m.impl("elementwise_dropout", xformers::ops::elementwise_dropout_by_name);
  m.impl("fused_linear", xformers::ops::fused_linear_by_name);
}
// Under torch.vmap they draw for the whole batch, as its `randomness` says.
TORCH_LIBRARY_IMPL(xformers, FuncTorchVmapMode, m) {
  m.impl("fused_dropout", xformers::ops::fused_dropout_by_name);
  m.impl("elementwise_dropout", xformers::ops::elementwise_dropout_by_name);
}
