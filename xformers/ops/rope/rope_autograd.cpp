// Gradients of rotary; rope_padded writes its caches in place and has none to give.
#include "xformers/ops/common/operator_node.h"
#include "xformers/ops/rope/rope_op.h"

namespace xformers::ops {
namespace {

void refuse_gradients(std::initializer_list<at::Tensor> inputs) {
  if (!at::GradMode::is_enabled()) return;
  for (const at::Tensor& input : inputs) {
    if (input.requires_grad()) {
      throw Error("rope_padded: Gradients not supported.  Fix: call it under torch.no_grad(), or detach() the inputs.");
    }
  }
}

at::Tensor rope_padded_autograd(const RopePadded& args) {
  args.check();
  refuse_gradients({args.xq, args.xk, args.xv, args.cache_k, args.cache_v});
  at::Tensor out = below_autograd(args);
  for (const at::Tensor& written : {args.cache_k, args.cache_v}) written_inplace(written, nullptr);
  return out;
}

void rope_padded_out_autograd(const RopePaddedOut& args) {
  args.check();
  refuse_gradients({args.xq, args.xk, args.xv, args.cache_k, args.cache_v, args.out_q});
  below_autograd(args);
  for (const at::Tensor& written : {args.cache_k, args.cache_v, args.out_q}) written_inplace(written, nullptr);
}

struct RotaryKept : Rotary {  // without x
  static constexpr const char* kNode = "XformersRotaryBackward";
  static constexpr auto members() { return members_of<Rotary>(); }

  // The inverse of a rotation is its transpose.
  variable_list gradients(const variable_list& grads, const Wanted&) const {
    Rotary back = *this;
    back.x = grads[0];
    back.inverse = !inverse;
    return {call(back)};
  }
};

at::Tensor rotary_autograd(const Rotary& args) {
  const auto node = record<RotaryKept>(args.x);
  at::Tensor out = with_history(below_autograd(args), node);
  if (node) {
    RotaryKept kept{args};
    kept.x = at::Tensor();
    node->keep(kept);
  }
  return out;
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, Autograd, m) {
  using namespace xformers::ops;
  implement<rope_padded_autograd>(m);
  implement<rope_padded_out_autograd>(m);
  implement<rotary_autograd>(m);
}
