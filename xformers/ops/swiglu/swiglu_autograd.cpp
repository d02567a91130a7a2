// Gradients of SwiGLU, and autocast. What is kept for backward: x, the weights, and the two products x1 and x2.
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include "xformers/ops/common/gradient_node.h"
#include "xformers/ops/common/stack.h"
#include "xformers/ops/swiglu/swiglu_op.h"

namespace xformers::ops {
namespace {

using torch::autograd::variable_list;

// x1x2 is the largest of what is saved: where this is its end, its gradient takes its memory.
const c10::TypedOperatorHandle<SwigluBackward>& backward_op(const SavedForGradient& s, const at::Tensor& x1x2) {
  const bool ours = s.last_use && is_eager(x1x2) && x1x2.use_count() == 1 && x1x2.storage().use_count() == 1;
  return ours && !at::GradMode::is_enabled() ? swiglu_backward_inplace_op() : swiglu_backward_op();
}

// Saved: x, w1, w2, w3, x1x2. Inputs: x, w1, b1, w2, b2, w3, b3.
variable_list fused_gradients(const variable_list& grads, const SavedForGradient& s) {
  const auto [dx, dw1w2, db1b2, dw3, db3] =
      backward_op(s, s.tensors[4])
          .call(grads[0], s.tensors[0], s.tensors[4], s.tensors[1], s.tensors[2], s.tensors[3], s.wanted[0],
                s.wanted[1] || s.wanted[3], s.wanted[2] || s.wanted[4], s.wanted[5], s.wanted[6]);
  const auto half = [&](bool wanted, const at::Tensor& both, int64_t which) {
    return wanted ? both.select(0, which) : at::Tensor();
  };
  return {s.wanted[0] ? dx : at::Tensor(), half(s.wanted[1], dw1w2, 0), half(s.wanted[2], db1b2, 0),
          half(s.wanted[3], dw1w2, 1),     half(s.wanted[4], db1b2, 1), s.wanted[5] ? dw3 : at::Tensor(),
          s.wanted[6] ? db3 : at::Tensor()};
}

at::Tensor fused_autograd(const at::Tensor& x, const at::Tensor& w1, const OptionalTensor& b1, const at::Tensor& w2,
                          const OptionalTensor& b2, const at::Tensor& w3, const OptionalTensor& b3) {
  check_swiglu(x, w1, b1, w2, b2, w3, b3);
  const auto node =
      GradientNode::record("XformersSwigluFusedBackward", fused_gradients,
                           {x, w1, defined_or_empty(b1), w2, defined_or_empty(b2), w3, defined_or_empty(b3)});
  if (!node) return below_autograd([&] { return swiglu_fused_op().call(x, w1, b1, w2, b2, w3, b3); });
  auto [out, x1x2] = below_autograd([&] { return swiglu_forward_op().call(x, w1, b1, w2, b2, w3, b3); });
  node->save({x, w1, w2, w3, x1x2});
  return with_history(std::move(out), node);
}

// Saved: x, w1w2, w3, x1x2. Inputs: x, w1w2, b1b2, w3, b3.
variable_list packed_gradients(const variable_list& grads, const SavedForGradient& s) {
  const at::Tensor& w1w2 = s.tensors[1];
  const auto [dx, dw1w2, db1b2, dw3, db3] =
      backward_op(s, s.tensors[3])
          .call(grads[0], s.tensors[0], s.tensors[3], w1w2.select(0, 0), w1w2.select(0, 1), s.tensors[2], s.wanted[0],
                s.wanted[1], s.wanted[2], s.wanted[3], s.wanted[4]);
  variable_list all{dx, dw1w2, db1b2, dw3, db3};
  for (size_t i = 0; i < all.size(); ++i) {
    if (!s.wanted[i]) all[i] = at::Tensor();
  }
  return all;
}

at::Tensor packed_autograd(const at::Tensor& x, const at::Tensor& w1w2, const OptionalTensor& b1b2,
                           const at::Tensor& w3, const OptionalTensor& b3) {
  const auto node = GradientNode::record("XformersSwigluPackedBackward", packed_gradients,
                                         {x, w1w2, defined_or_empty(b1b2), w3, defined_or_empty(b3)});
  if (!node) return below_autograd([&] { return swiglu_packedw_op().call(x, w1w2, b1b2, w3, b3); });
  const ArgumentCheck check("swiglu_packedw");
  check.dims("w1w2", w1w2, 3, "[2, hidden, in]");
  check.shape("w1w2", w1w2, {2, w1w2.sym_size(1), w1w2.sym_size(2)}, "stack w1 and w2");
  if (b1b2) check.shape("b1b2", *b1b2, {2, w1w2.sym_size(1)}, "stack b1 and b2");
  auto [out, x1x2] = below_autograd([&] {
    const auto bias = [&](int64_t which) { return b1b2 ? OptionalTensor(b1b2->select(0, which)) : std::nullopt; };
    return swiglu_forward_op().call(x, w1w2.select(0, 0), bias(0), w1w2.select(0, 1), bias(1), w3, b3);
  });
  node->save({x, w1w2, w3, x1x2});
  return with_history(std::move(out), node);
}

variable_list gate_gradients(const variable_list& grads, const SavedForGradient& s) {
  const auto [dx1, dx2] = silu_gate_backward_op().call(s.tensors[0], s.tensors[1], grads[0]);
  return {s.wanted[0] ? dx1 : at::Tensor(), s.wanted[1] ? dx2 : at::Tensor()};
}

at::Tensor gate_autograd(const at::Tensor& x1, const at::Tensor& x2) {
  check_gate("silu_gate", x1, x2);
  const auto node = GradientNode::record("XformersSiluGateBackward", gate_gradients, {x1, x2});
  at::Tensor out = below_autograd([&] { return silu_gate_op().call(x1, x2); });
  if (node) node->save({x1, x2});
  return with_history(std::move(out), node);
}

// ---- autocast: everything in the region's dtype, backward too; parameters get gradients in their own ----
template <c10::DeviceType kDevice>
struct Autocast {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast{
      at::autocast::get_autocast_dispatch_key_from_device_type(kDevice)};
  const at::ScalarType dtype = at::autocast::get_autocast_dtype(kDevice);

  at::Tensor operator()(const at::Tensor& t) const { return at::autocast::cached_cast(dtype, t, kDevice); }
  OptionalTensor operator()(const OptionalTensor& t) const { return t ? OptionalTensor((*this)(*t)) : std::nullopt; }
};

template <c10::DeviceType kDevice>
at::Tensor fused_autocast(const at::Tensor& x, const at::Tensor& w1, const OptionalTensor& b1, const at::Tensor& w2,
                          const OptionalTensor& b2, const at::Tensor& w3, const OptionalTensor& b3) {
  const Autocast<kDevice> cast;
  return swiglu_fused_op().call(cast(x), cast(w1), cast(b1), cast(w2), cast(b2), cast(w3), cast(b3));
}

template <c10::DeviceType kDevice>
at::Tensor packed_autocast(const at::Tensor& x, const at::Tensor& w1w2, const OptionalTensor& b1b2,
                           const at::Tensor& w3, const OptionalTensor& b3) {
  const Autocast<kDevice> cast;
  return swiglu_packedw_op().call(cast(x), cast(w1w2), cast(b1b2), cast(w3), cast(b3));
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, Autograd, m) {
  m.impl("swiglu_fused", xformers::ops::fused_autograd);
  m.impl("swiglu_packedw", xformers::ops::packed_autograd);
  m.impl("silu_gate", xformers::ops::gate_autograd);
  for (const char* name : {"swiglu_forward", "swiglu_backward", "swiglu_backward_", "silu_bw_fused",
                           "silu_gate_backward", "silu_gate_backward_out", "dual_gemm_silu_identity_mul"}) {
    m.impl(name, torch::autograd::autogradNotImplementedFallback());  // no gradients of these alone
  }
}

TORCH_LIBRARY_IMPL(xformers, AutocastCPU, m) {
  m.impl("swiglu_fused", xformers::ops::fused_autocast<c10::DeviceType::CPU>);
  m.impl("swiglu_packedw", xformers::ops::packed_autocast<c10::DeviceType::CPU>);
}

TORCH_LIBRARY_IMPL(xformers, AutocastCUDA, m) {
  m.impl("swiglu_fused", xformers::ops::fused_autocast<c10::DeviceType::CUDA>);
  m.impl("swiglu_packedw", xformers::ops::packed_autocast<c10::DeviceType::CUDA>);
}
