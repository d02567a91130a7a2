// Gradients of softmax, from its result alone, and autocast.
#include <ATen/ExpandUtils.h>

#include "xformers/ops/common/operator_node.h"
#include "xformers/ops/softmax/softmax_op.h"

namespace xformers::ops {
namespace {

template <bool kLog>
struct SoftmaxKept {
  static constexpr const char* kNode = kLog ? "XformersLogSoftmaxBackward" : "XformersSoftmaxBackward";
  at::Tensor out;
  bool causal = false;
  std::vector<c10::SymInt> mask_sizes{};
  static constexpr auto members() {
    return std::tuple{&SoftmaxKept::out, &SoftmaxKept::causal, &SoftmaxKept::mask_sizes};
  }

  // The mask's gradient is that of x, summed where it was shared.
  variable_list gradients(const variable_list& grads, const Wanted& wanted) const {
    const at::Tensor dx = call(SoftmaxBackward{grads[0], out, causal, kLog});
    return wanted.only(dx, wanted[1] ? at::sum_to(dx, c10::SymIntArrayRef(mask_sizes)) : at::Tensor());
  }
};

template <bool kLog>
at::Tensor softmax_autograd(const SoftmaxOf<kLog>& args) {
  args.check();
  const auto node = record<SoftmaxKept<kLog>>(args.x, args.mask);
  at::Tensor out = with_history(below_autograd(args), node);
  if (node) {
    node->keep({out, args.causal, args.mask ? args.mask->sym_sizes().vec() : std::vector<c10::SymInt>()});
  }
  return out;
}

// x as it is, since the arithmetic is fp32 anyway; a mask made outside the region takes x's dtype.
template <bool kLog>
void softmax_autocast(SoftmaxOf<kLog>& args, const AutocastRegion&) {
  if (args.mask && at::isFloatingType(args.mask->scalar_type())) args.mask = args.mask->to(args.x.scalar_type());
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, Autograd, m) {
  using namespace xformers::ops;
  implement<softmax_autograd<false>>(m);
  implement<softmax_autograd<true>>(m);
  implement_no_gradients<SoftmaxBackward>(m);  // refuses double backward
}

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  using namespace xformers::ops;
  implement_autocast<softmax_autocast<false>>(m);
  implement_autocast<softmax_autocast<true>>(m);
}
