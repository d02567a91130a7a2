// Schemas, public functions and checks.
#include "xformers/ops/bias_act_dropout/bias_act_dropout.h"

#include <ATen/ops/linear.h>
#include <torch/library.h>

#include <array>

#include "xformers/ops/bias_act_dropout/bias_act_dropout_op.h"
#include "xformers/ops/common/dropout.h"
#include "xformers/ops/common/random.h"

namespace xformers::ops {
namespace {

constexpr std::array<std::string_view, 7> kActivationNames = {"none",         "relu",  "leaky_relu", "gelu",
                                                              "squared_relu", "smelu", "star_relu"};

void check_like(const ArgumentCheck& check, const char* name, const OptionalTensor& t, const at::Tensor& x,
                const char* x_name) {
  if (!t) return;
  check.shape(name, *t, x.sym_sizes(), "both have one shape");
  check.same_dtype(name, *t, x, x_name);
  check.same_device(name, *t, x, x_name);
}

void check_bias(const ArgumentCheck& check, const OptionalTensor& bias, const at::Tensor& x, const char* x_name) {
  if (x.dim() < 1) check.fail(x_name, describe(x), "at least one dimension", "pass [..., width]");
  if (!bias) return;
  check.shape("bias", *bias, {x.sym_size(-1)}, "one element per element of the last dimension");
  check.floating("bias", *bias);
  check.same_device("bias", *bias, x, x_name);
}

// Without a generator among the arguments: graphs can't hold one.
OptionalTensor draw_for(const at::Tensor& x, double p) {
  if (!(p > 0 && p < 1)) return std::nullopt;
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("xformers::draw_philox_state", "")
                             .typed<at::Tensor(std::optional<at::Device>, std::optional<at::Generator>)>();
  return op.call(x.device(), std::nullopt);
}

}  // namespace

Activation to_activation(const char* where, ActivationName name) {
  if (!name) return Activation::kNone;
  for (size_t i = 0; i < kActivationNames.size(); ++i) {
    if (*name == kActivationNames[i]) return static_cast<Activation>(i);
  }
  std::string expected = "None";
  for (size_t i = 1; i < kActivationNames.size(); ++i) expected += ", " + std::string(kActivationNames[i]);
  ArgumentCheck(where).fail("activation", "'" + std::string(*name) + "'", "one of " + expected,
                            "build_activation() has the same names");
}

ActivationName name_of(Activation activation) {
  if (activation == Activation::kNone) return std::nullopt;
  return kActivationNames[static_cast<size_t>(activation)];
}

void check_bias_act_dropout(const BiasActDropoutArgs& args) {
  const char* where = "bias_act_dropout";
  const ArgumentCheck check(where);
  check.floating("x", args.x);
  check_bias(check, args.bias, args.x, "x");
  check_like(check, "residual", args.residual, args.x, "x");
  check_dropout(where, args.p, args.philox_state, args.x);
  to_activation(where, args.activation);
}

void check_bias_act_dropout_backward(const BiasActDropoutBackwardArgs& args) {
  const char* where = "bias_act_dropout_backward";
  const ArgumentCheck check(where);
  check.floating("grad_out", args.grad_out);
  check_bias(check, args.bias, args.grad_out, "grad_out");
  check_like(check, "x", args.x, args.grad_out, "grad_out");
  check_dropout(where, args.p, args.philox_state, args.grad_out);
  if (to_activation(where, args.activation) != Activation::kNone && !args.x) {
    check.fail("x", "None", "the input of the activation", "pass x, or activation=None");
  }
}

const BiasActDropoutOp::Handle& bias_act_dropout_op() {
  static const auto op = BiasActDropoutOp::find("xformers::bias_act_dropout");
  return op;
}

const BiasActDropoutBackwardOp::Handle& bias_act_dropout_backward_op() {
  static const auto op = BiasActDropoutBackwardOp::find("xformers::bias_act_dropout_backward");
  return op;
}

at::Tensor bias_act_dropout(const at::Tensor& x, const OptionalTensor& bias, const OptionalTensor& residual,
                            Activation activation, double p, const OptionalTensor& philox_state) {
  return bias_act_dropout_op().call(x, bias, residual, name_of(activation), p, philox_state);
}

at::Tensor fused_dropout(const at::Tensor& x, double p, const OptionalTensor& bias, Activation activation,
                         const OptionalTensor& residual) {
  return bias_act_dropout(x, bias, residual, activation, p, draw_for(x, p));
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

at::Tensor fused_linear_by_name(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias,
                                ActivationName activation) {
  return fused_linear(x, weight, bias, to_activation("fused_linear", activation));
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  m.def(
      "bias_act_dropout(Tensor x, Tensor? bias=None, Tensor? residual=None, str? activation=None, float p=0.0, "
      "Tensor? philox_state=None) -> Tensor",
      tags);
  m.def(
      "bias_act_dropout_backward(Tensor grad_out, Tensor? x=None, Tensor? bias=None, str? activation=None, "
      "float p=0.0, Tensor? philox_state=None, bool need_dx=True, bool need_dbias=True) -> (Tensor dx, Tensor dbias)",
      tags);
  m.def("fused_dropout(Tensor x, float p, Tensor? bias=None, str? activation=None, Tensor? residual=None) -> Tensor",
        tags);
  m.def("fused_linear(Tensor x, Tensor weight, Tensor? bias=None, str? activation=None) -> Tensor", tags);
}

// Made of the operators above and of LibTorch's, which bring gradients, autocast and meta with them.
TORCH_LIBRARY_IMPL(xformers, CompositeImplicitAutograd, m) {
  m.impl("fused_dropout", xformers::ops::fused_dropout_by_name);
  m.impl("fused_linear", xformers::ops::fused_linear_by_name);
}
