// Gradients of the normalisations, and autocast.
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include "xformers/ops/common/gradient_node.h"
#include "xformers/ops/norm/norm_op.h"

namespace xformers::ops {
namespace {

using torch::autograd::variable_list;

// Saved: x, weight; eps.
variable_list rms_norm_gradients(const variable_list& grads, const SavedForGradient& saved) {
  auto [dx, dweight] = rms_norm_backward_op().call(grads[0], saved.tensors[0], to_optional(saved.tensors[1]),
                                                   saved.numbers[0], saved.wanted[0], saved.wanted[1]);
  return {saved.wanted[0] ? dx : at::Tensor(), saved.wanted[1] ? dweight : at::Tensor()};
}

at::Tensor rms_norm_autograd(const at::Tensor& x, const OptionalTensor& weight, double eps) {
  check_rms_norm("rms_norm", x, weight);
  const at::Tensor w = defined_or_empty(weight);
  const auto node = GradientNode::record("XformersRmsNormBackward", rms_norm_gradients, {x, w});
  at::Tensor out = below_autograd([&] { return rms_norm_op().call(x, weight, eps); });
  if (node) node->save({x, w}, {eps});
  return with_history(std::move(out), node);
}

variable_list sum_gradients(const variable_list& grads, const SavedForGradient&) { return {grads[0], grads[0]}; }

// Two nodes: the sum, which is what x then is, and its norm.
at::Tensor rms_norm_add_autograd(const at::Tensor& x, const at::Tensor& y, const OptionalTensor& weight, double eps) {
  check_rms_norm_add(x, y, weight);
  const auto sum = GradientNode::record("XformersRmsNormAddBackward", sum_gradients, {x, y});
  check_inplace(x, sum != nullptr);
  at::Tensor out = below_autograd([&] { return rms_norm_add_op().call(x, y, weight, eps); });
  written_inplace(x, sum);
  const at::Tensor w = defined_or_empty(weight);
  const auto node = GradientNode::record("XformersRmsNormBackward", rms_norm_gradients, {x, w});
  if (node) node->save({x, w}, {eps});
  return with_history(std::move(out), node);
}

variable_list layer_norm_gradients(const variable_list& grads, const SavedForGradient& saved) {
  auto [dx, dweight, dbias] =
      layer_norm_backward_op().call(grads[0], saved.tensors[0], to_optional(saved.tensors[1]), saved.numbers[0],
                                    saved.wanted[0], saved.wanted[1], saved.wanted[2]);
  return {saved.wanted[0] ? dx : at::Tensor(), saved.wanted[1] ? dweight : at::Tensor(),
          saved.wanted[2] ? dbias : at::Tensor()};
}

at::Tensor layer_norm_autograd(const at::Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                               double eps) {
  check_norm("layer_norm", x, weight, bias);
  const at::Tensor w = defined_or_empty(weight), b = defined_or_empty(bias);
  const auto node = GradientNode::record("XformersLayerNormBackward", layer_norm_gradients, {x, w, b});
  at::Tensor out = below_autograd([&] { return layer_norm_op().call(x, weight, bias, eps); });
  if (node) node->save({x, w}, {eps});
  return with_history(std::move(out), node);
}

// In fp32, like LibTorch's.
template <c10::DeviceType kDevice>
at::Tensor layer_norm_autocast(const at::Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                               double eps) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(
      at::autocast::get_autocast_dispatch_key_from_device_type(kDevice));
  return layer_norm_op().call(at::autocast::cached_cast(at::kFloat, x, kDevice), weight, bias, eps);
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, Autograd, m) {
  m.impl("rms_norm", xformers::ops::rms_norm_autograd);
  m.impl("rms_norm_add_", xformers::ops::rms_norm_add_autograd);
  m.impl("layer_norm", xformers::ops::layer_norm_autograd);
  m.impl("rms_norm_backward", torch::autograd::autogradNotImplementedFallback());  // refuses double backward
  m.impl("layer_norm_backward", torch::autograd::autogradNotImplementedFallback());
}

TORCH_LIBRARY_IMPL(xformers, AutocastCPU, m) {
  m.impl("layer_norm", xformers::ops::layer_norm_autocast<c10::DeviceType::CPU>);
}

TORCH_LIBRARY_IMPL(xformers, AutocastCUDA, m) {
  m.impl("layer_norm", xformers::ops::layer_norm_autocast<c10::DeviceType::CUDA>);
}
