// Layers that choose their operator, and the one rule by which it is chosen.
#include <ATen/autocast_mode.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/silu.h>

#include "xformers/ops/common/stack.h"
#include "xformers/ops/swiglu/swiglu.h"
#include "xformers/ops/swiglu/swiglu_op.h"

namespace xformers::ops {
namespace {

std::optional<at::ScalarType> autocast_dtype(at::DeviceType device) {
  if ((device != at::kCPU && device != at::kCUDA) || !at::autocast::is_autocast_enabled(device)) return std::nullopt;
  return at::autocast::get_autocast_dtype(device);
}

bool gpu_runs_kernels() {
  const auto op = c10::Dispatcher::singleton().findSchema({"xformers::why_not_cuda", ""});
  return op && op->typed<std::string()>().call().empty();
}

// Whether the fused operators take x of `dtype` beside what the layer is `computed_in`, autocast's dtype or that of the
// weights: one dtype for all, or autocast. The CPU computes in every floating dtype, a GPU in those of its tensor
// cores.
bool fused_takes(at::Device device, at::ScalarType dtype, at::ScalarType computed_in) {
  if (autocast_dtype(device.type()) ? dtype == at::kDouble : dtype != computed_in) return false;
  if (device.is_cpu()) return is_kernel_dtype(computed_in);
  return device.is_cuda() && (computed_in == at::kHalf || computed_in == at::kBFloat16) && gpu_runs_kernels();
}

bool fused_serves(const at::Tensor& x, const at::Tensor& weight) {
  const at::Device device = x.device();
  return fused_takes(device, x.scalar_type(), autocast_dtype(device.type()).value_or(weight.scalar_type()));
}

// Of PyTorch's own operators: every device and dtype, and mixed ones where PyTorch mixes them.
at::Tensor eager(const SwigluEager& args) {
  const auto& [x, w1, b1, w2, b2, w3, b3] = static_cast<const SwigluFused&>(args);
  args.check_shapes();
  const at::Tensor rows = x.dim() == 2 ? x : x.reshape_symint({-1, x.sym_size(-1)});
  const at::Tensor out = at::linear(at::silu(at::linear(rows, w1, b1)) * at::linear(rows, w2, b2), w3, b3);
  c10::SymDimVector sizes(x.sym_sizes().begin(), x.sym_sizes().end());
  sizes.back() = w3.sym_size(0);
  return x.dim() == 2 ? out : out.view_symint(sizes);
}

at::Tensor choose(const SwigluChoice& args) {
  const auto& [x, w1, b1, w2, b2, w3, b3] = static_cast<const SwigluFused&>(args);
  if (!fused_serves(x, w1)) return eager({args});
  args.check_shapes();
  if (const at::Tensor w1w2 = stack_or_none({w1, w2}, 0); w1w2.defined() && b1.has_value() == b2.has_value()) {
    const at::Tensor b1b2 = b1 ? stack_or_none({*b1, *b2}, 0) : at::Tensor();
    if (b1b2.defined() || !b1) return swiglu_packed(x, w1w2, to_optional(b1b2), w3, b3);
  }
  return swiglu(x, w1, b1, w2, b2, w3, b3);
}

at::Tensor choose_packed(const SwigluPackedChoice& args) {
  const auto& [x, w1w2, b1b2, w3, b3] = static_cast<const SwigluPackedw&>(args);
  if (fused_serves(x, w1w2)) return swiglu_packed(x, w1w2, b1b2, w3, b3);
  args.check_shapes();
  const std::vector<at::Tensor> w = ops::unbind(w1w2, 0), b = b1b2 ? ops::unbind(*b1b2, 0) : std::vector<at::Tensor>(2);
  return eager({{x, w[0], to_optional(b[0]), w[1], to_optional(b[1]), w3, b3}});
}

void check(const SwigluCheck& args) { args.check_shapes(); }

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  using namespace xformers::ops;
  define<SwigluChoice, SwigluPackedChoice, SwigluEager, SwigluCheck>(m);
  m.def("swiglu_fused_takes(Device device, ScalarType dtype, ScalarType computed_in) -> bool", fused_takes);
}

TORCH_LIBRARY_IMPL(xformers, CompositeImplicitAutograd, m) {
  using namespace xformers::ops;
  implement<choose>(m);
  implement<choose_packed>(m);
  implement<eager>(m);
  implement<check>(m);
}
