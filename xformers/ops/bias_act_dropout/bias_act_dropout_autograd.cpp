// Gradients of the fused layer, and autocast. Kept for backward: the random state, and x where there is an activation.
#include "xformers/ops/bias_act_dropout/bias_act_dropout_op.h"
#include "xformers/ops/common/operator_node.h"

namespace xformers::ops {
namespace {

struct BiasActDropoutKept {
  static constexpr const char* kNode = "XformersBiasActDropoutBackward";
  at::Tensor x;
  OptionalTensor bias{}, philox_state{};
  int64_t activation = 0;
  double p = 0;
  static constexpr auto members() {
    using K = BiasActDropoutKept;
    return std::tuple{&K::x, &K::bias, &K::philox_state, &K::activation, &K::p};
  }

  // Of x, bias and residual.
  variable_list gradients(const variable_list& grads, const Wanted& wanted) const {
    if (!wanted[0] && !wanted[1]) return {at::Tensor(), at::Tensor(), grads[0]};
    const auto [dx, dbias] =
        call(BiasActDropoutBackward{grads[0], to_optional(x), bias, name_of(static_cast<Activation>(activation)), p,
                                    philox_state, wanted[0], wanted[1]});
    return wanted.only(dx, dbias, grads[0]);
  }
};

at::Tensor bias_act_dropout_autograd(const BiasActDropout& args) {
  args.check();
  const auto node = record<BiasActDropoutKept>(args.x, args.bias, args.residual);
  at::Tensor out = with_history(below_autograd(args), node);
  if (node) {
    const Activation activation = to_activation(args.kName, args.activation);
    node->keep({activation == Activation::kNone ? at::Tensor() : args.x, args.bias, args.philox_state,
                static_cast<int64_t>(activation), args.p});
  }
  return out;
}

// x and residual in the region's dtype; the bias is taken in fp32 anyway.
void bias_act_dropout_autocast(BiasActDropout& args, const AutocastRegion& region) {
  region(args.x);
  region(args.residual);
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, Autograd, m) {
  using namespace xformers::ops;
  implement<bias_act_dropout_autograd>(m);
  implement_no_gradients<BiasActDropoutBackward, BiasActDropoutBackwardInplace>(m);  // refuses double backward
}

TORCH_LIBRARY_FRAGMENT(xformers, m) { xformers::ops::implement_autocast<xformers::ops::bias_act_dropout_autocast>(m); }
