// Gradients of the fused layer, and autocast. Kept for backward: the random state, and x where there is an activation.
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include "xformers/ops/bias_act_dropout/bias_act_dropout_op.h"
#include "xformers/ops/common/gradient_node.h"

namespace xformers::ops {
namespace {

using torch::autograd::variable_list;

// Saved: x, bias, philox_state; activation, p. Inputs: x, bias, residual.
variable_list gradients(const variable_list& grads, const SavedForGradient& saved) {
  const bool need_dx = saved.wanted[0], need_dbias = saved.wanted[1];
  variable_list result(3);
  if (saved.wanted[2]) result[2] = grads[0];
  if (!need_dx && !need_dbias) return result;
  const auto [dx, dbias] =
      bias_act_dropout_backward_op().call(grads[0], to_optional(saved.tensors[0]), to_optional(saved.tensors[1]),
                                          name_of(static_cast<Activation>(saved.numbers[0])), saved.numbers[1],
                                          to_optional(saved.tensors[2]), need_dx, need_dbias);
  if (need_dx) result[0] = dx;
  if (need_dbias) result[1] = dbias;
  return result;
}

at::Tensor bias_act_dropout_autograd(const BiasActDropoutArgs& args) {
  check_bias_act_dropout(args);
  const auto node = GradientNode::record("XformersBiasActDropoutBackward", gradients,
                                         {args.x, defined_or_empty(args.bias), defined_or_empty(args.residual)});
  at::Tensor out = below_autograd([&] { return BiasActDropoutOp::call(bias_act_dropout_op(), args); });
  if (node) {
    const Activation activation = to_activation("bias_act_dropout", args.activation);
    const at::Tensor x = activation == Activation::kNone ? at::Tensor() : args.x;
    node->save({x, defined_or_empty(args.bias), defined_or_empty(args.philox_state)},
               {static_cast<double>(activation), args.p});
  }
  return with_history(std::move(out), node);
}

// x and residual in the region's dtype; the bias is taken in fp32 anyway.
template <c10::DeviceType kDevice>
at::Tensor bias_act_dropout_autocast(const BiasActDropoutArgs& args) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(
      at::autocast::get_autocast_dispatch_key_from_device_type(kDevice));
  const at::ScalarType dtype = at::autocast::get_autocast_dtype(kDevice);
  BiasActDropoutArgs cast = args;
  cast.x = at::autocast::cached_cast(dtype, args.x, kDevice);
  if (args.residual) cast.residual = at::autocast::cached_cast(dtype, *args.residual, kDevice);
  return BiasActDropoutOp::call(bias_act_dropout_op(), cast);
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, Autograd, m) {
  m.impl("bias_act_dropout", xformers::ops::BiasActDropoutOp::entry<xformers::ops::bias_act_dropout_autograd>);
  m.impl("bias_act_dropout_backward", torch::autograd::autogradNotImplementedFallback());  // refuses double backward
}

TORCH_LIBRARY_IMPL(xformers, AutocastCPU, m) {
  m.impl("bias_act_dropout",
         xformers::ops::BiasActDropoutOp::entry<xformers::ops::bias_act_dropout_autocast<c10::DeviceType::CPU>>);
}

TORCH_LIBRARY_IMPL(xformers, AutocastCUDA, m) {
  m.impl("bias_act_dropout",
         xformers::ops::BiasActDropoutOp::entry<xformers::ops::bias_act_dropout_autocast<c10::DeviceType::CUDA>>);
}
