// Gradients of softmax, from its result alone, and autocast.
#include <ATen/ExpandUtils.h>
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include "xformers/ops/common/gradient_node.h"
#include "xformers/ops/softmax/softmax_op.h"

namespace xformers::ops {
namespace {

using torch::autograd::variable_list;

// Saved: the result; causal, log; the mask's sizes. The mask's gradient is that of x, summed where it was shared.
variable_list softmax_gradients(const variable_list& grads, const SavedForGradient& saved) {
  const at::Tensor dx =
      softmax_backward_op().call(grads[0], saved.tensors[0], saved.numbers[0] != 0, saved.numbers[1] != 0);
  return {saved.wanted[0] ? dx : at::Tensor(),
          saved.wanted[1] ? at::sum_to(dx, c10::SymIntArrayRef(saved.sizes)) : at::Tensor()};
}

template <bool kLog>
at::Tensor softmax_autograd(const at::Tensor& x, const OptionalTensor& mask, bool causal) {
  check_softmax(kLog ? "log_softmax" : "softmax", x, mask, causal);
  const auto node = GradientNode::record(kLog ? "XformersLogSoftmaxBackward" : "XformersSoftmaxBackward",
                                         softmax_gradients, {x, defined_or_empty(mask)});
  at::Tensor out = with_history(
      below_autograd([&] { return (kLog ? log_softmax_op() : softmax_op()).call(x, mask, causal); }), node);
  if (node) {
    node->save({}, {double(causal), double(kLog)}, mask ? mask->sym_sizes().vec() : std::vector<c10::SymInt>());
    node->save_result(out);
  }
  return out;
}

// x as it is, since the arithmetic is fp32 anyway; a mask made outside the region takes x's dtype.
template <c10::DeviceType kDevice, bool kLog>
at::Tensor softmax_autocast(const at::Tensor& x, const OptionalTensor& mask, bool causal) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(
      at::autocast::get_autocast_dispatch_key_from_device_type(kDevice));
  const bool cast = mask && at::isFloatingType(mask->scalar_type());
  return (kLog ? log_softmax_op() : softmax_op())
      .call(x, cast ? OptionalTensor(mask->to(x.scalar_type())) : mask, causal);
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, Autograd, m) {
  m.impl("softmax", xformers::ops::softmax_autograd<false>);
  m.impl("log_softmax", xformers::ops::softmax_autograd<true>);
  m.impl("softmax_backward", torch::autograd::autogradNotImplementedFallback());  // refuses double backward
}

TORCH_LIBRARY_IMPL(xformers, AutocastCPU, m) {
  m.impl("softmax", xformers::ops::softmax_autocast<c10::DeviceType::CPU, false>);
  m.impl("log_softmax", xformers::ops::softmax_autocast<c10::DeviceType::CPU, true>);
}

TORCH_LIBRARY_IMPL(xformers, AutocastCUDA, m) {
  m.impl("softmax", xformers::ops::softmax_autocast<c10::DeviceType::CUDA, false>);
  m.impl("log_softmax", xformers::ops::softmax_autocast<c10::DeviceType::CUDA, true>);
}
