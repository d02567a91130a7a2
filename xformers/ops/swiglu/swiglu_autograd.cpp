// Gradients of SwiGLU, and autocast. What is kept for backward: x, the weights, and the two products x1 and x2.
#include "xformers/ops/common/operator_node.h"
#include "xformers/ops/common/stack.h"
#include "xformers/ops/swiglu/swiglu_op.h"

namespace xformers::ops {
namespace {

// x1x2 is the largest of what is kept: where this is its end, its gradient takes its memory.
SwigluBackward::Result call_backward(const SwigluBackward& args, const at::Tensor& x1x2, const Wanted& wanted) {
  const bool ours = wanted.last_use && is_eager(x1x2) && is_sole_owner(x1x2);
  SwigluBackward with_x1x2 = args;
  with_x1x2.x1x2 = x1x2;
  return ours && !at::GradMode::is_enabled() ? call(SwigluBackwardInplace{with_x1x2}) : call(with_x1x2);
}

struct SwigluFusedKept {
  static constexpr const char* kNode = "XformersSwigluFusedBackward";
  at::Tensor x, w1, w2, w3, x1x2;
  static constexpr auto members() {
    using K = SwigluFusedKept;
    return std::tuple{&K::x, &K::w1, &K::w2, &K::w3, &K::x1x2};
  }

  // Of x, w1, b1, w2, b2, w3, b3.
  variable_list gradients(const variable_list& grads, const Wanted& wanted) const {
    const bool need_w = wanted[1] || wanted[3], need_b = wanted[2] || wanted[4];
    const auto [dx, dw1w2, db1b2, dw3, db3] =
        call_backward({grads[0], x, {}, w1, w2, w3, wanted[0], need_w, need_b, wanted[5], wanted[6]}, x1x2, wanted);
    const auto half = [](bool needed, const at::Tensor& both, int64_t which) {
      return needed ? both.select(0, which) : at::Tensor();
    };
    return wanted.only(dx, half(need_w, dw1w2, 0), half(need_b, db1b2, 0), half(need_w, dw1w2, 1),
                       half(need_b, db1b2, 1), dw3, db3);
  }
};

at::Tensor fused_autograd(const SwigluFused& args) {
  args.check();
  const auto& [x, w1, b1, w2, b2, w3, b3] = args;
  const auto node = record<SwigluFusedKept>(x, w1, b1, w2, b2, w3, b3);
  if (!node) return below_autograd(args);
  auto [out, x1x2] = below_autograd(SwigluForward{args});
  node->keep({x, w1, w2, w3, x1x2});
  return with_history(std::move(out), node);
}

struct SwigluPackedKept {
  static constexpr const char* kNode = "XformersSwigluPackedBackward";
  at::Tensor x, w1w2, w3, x1x2;
  static constexpr auto members() {
    using K = SwigluPackedKept;
    return std::tuple{&K::x, &K::w1w2, &K::w3, &K::x1x2};
  }

  // Of x, w1w2, b1b2, w3, b3.
  variable_list gradients(const variable_list& grads, const Wanted& wanted) const {
    const auto [dx, dw1w2, db1b2, dw3, db3] = call_backward({grads[0],
                                                             x,
                                                             {},
                                                             w1w2.select(0, 0),
                                                             w1w2.select(0, 1),
                                                             w3,
                                                             wanted[0],
                                                             wanted[1],
                                                             wanted[2],
                                                             wanted[3],
                                                             wanted[4]},
                                                            x1x2, wanted);
    return wanted.only(dx, dw1w2, db1b2, dw3, db3);
  }
};

at::Tensor packed_autograd(const SwigluPackedw& args) {
  const auto& [x, w1w2, b1b2, w3, b3] = args;
  const auto node = record<SwigluPackedKept>(x, w1w2, b1b2, w3, b3);
  if (!node) return below_autograd(args);
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  auto [out, x1x2] = call(SwigluForward{args.unpacked()});
  node->keep({x, w1w2, w3, x1x2});
  return with_history(std::move(out), node);
}

struct SiluGateKept : SiluGate {
  static constexpr const char* kNode = "XformersSiluGateBackward";
  static constexpr auto members() { return members_of<SiluGate>(); }

  variable_list gradients(const variable_list& grads, const Wanted& wanted) const {
    const auto [dx1, dx2] = call(SiluGateBackward{x1, x2, grads[0]});
    return wanted.only(dx1, dx2);
  }
};

at::Tensor gate_autograd(const SiluGate& args) {
  args.check();
  const auto node = record<SiluGateKept>(args.x1, args.x2);
  at::Tensor out = with_history(below_autograd(args), node);
  if (node) node->keep({args});
  return out;
}

// Everything in the region's dtype, backward too; parameters get gradients in their own.
void fused_autocast(SwigluFused& args, const AutocastRegion& region) {
  for (at::Tensor* t : {&args.x, &args.w1, &args.w2, &args.w3}) region(*t);
  for (OptionalTensor* t : {&args.b1, &args.b2, &args.b3}) region(*t);
}

void packed_autocast(SwigluPackedw& args, const AutocastRegion& region) {
  for (at::Tensor* t : {&args.x, &args.w1w2, &args.w3}) region(*t);
  for (OptionalTensor* t : {&args.b1b2, &args.b3}) region(*t);
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, Autograd, m) {
  using namespace xformers::ops;
  implement<fused_autograd>(m);
  implement<packed_autograd>(m);
  implement<gate_autograd>(m);
  // No gradients of these alone.
  implement_no_gradients<SwigluForward, SwigluBackward, SwigluBackwardInplace, SiluBwFused, SiluGateBackward,
                         SiluGateBackwardOut, DualGemm>(m);
}

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  using namespace xformers::ops;
  implement_autocast<fused_autocast>(m);
  implement_autocast<packed_autocast>(m);
}
