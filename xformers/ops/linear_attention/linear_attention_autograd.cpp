// Gradients of linear attention, from its inputs, its result and denominators, and autocast.
#include <ATen/ops/zeros.h>

#include "xformers/ops/common/operator_node.h"
#include "xformers/ops/linear_attention/linear_attention_op.h"

namespace xformers::ops {
namespace {

struct LinearAttentionKept : LinearAttention {
  static constexpr const char* kNode = "XformersLinearAttentionBackward";
  at::Tensor out, denominator;
  static constexpr auto members() {
    using K = LinearAttentionKept;
    return std::tuple_cat(members_of<LinearAttention>(), std::tuple{&K::out, &K::denominator});
  }

  variable_list gradients(const variable_list& grads, const Wanted& wanted) const {
    const at::Tensor grad_out = grads[0].defined() ? grads[0] : at::zeros_symint(out_sizes(), q.options());
    const OptionalTensor grad_state = return_state ? to_optional(grads[1]) : std::nullopt;
    const auto [dq, dk, dv, dlog_decay, dstate] =
        call(LinearAttentionBackward{{*this}, grad_out, out, denominator, grad_state});
    return wanted.only(dq, dk, dv, dlog_decay, dstate);
  }
};

LinearAttention::Result linear_attention_autograd(const LinearAttention& args) {
  args.check();
  const auto node = record<LinearAttentionKept>(args.q, args.k, args.v, args.log_decay, args.state);
  auto [out, denominator, final_state] = below_autograd(args);
  out = with_history(out, node);
  if (args.return_state) final_state = with_history(final_state, node);
  if (node) node->keep({{args}, out, denominator});
  return {out, denominator, final_state};
}

// As they are, since the arithmetic is fp32 anyway; of several dtypes in the widest.
void linear_attention_autocast(LinearAttention& args, const AutocastRegion&) {
  const at::ScalarType widest =
      c10::promoteTypes(args.q.scalar_type(), c10::promoteTypes(args.k.scalar_type(), args.v.scalar_type()));
  for (at::Tensor* t : {&args.q, &args.k, &args.v}) *t = t->to(widest);
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, Autograd, m) {
  using namespace xformers::ops;
  implement<linear_attention_autograd>(m);
  implement_no_gradients<LinearAttentionBackward>(m);  // refuses double backward
}

TORCH_LIBRARY_FRAGMENT(xformers, m) { xformers::ops::implement_autocast<xformers::ops::linear_attention_autocast>(m); }
