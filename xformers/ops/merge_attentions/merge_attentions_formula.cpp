// merge_attentions by its formula, on devices without a kernel. Also what a call without any tensor reaches, which has
// no device: it is refused like any bad call.
#include <ATen/ATen.h>

#include <limits>

#include "xformers/ops/merge_attentions/merge_attentions_op.h"

namespace xformers::ops {
namespace {

constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();

// W [parts, batch, seqlen, (groups,) heads, 1] in lse's dtype, and the merged lse.
std::pair<at::Tensor, at::Tensor> weights_of(at::TensorList lse) {
  const at::Tensor parts = at::stack(lse);
  const at::Tensor merged = parts.logsumexp(0);
  const at::Tensor weights = (parts - merged).exp().masked_fill(parts == kMinusInfinity, 0);
  return {weights.movedim(-1, 2).unsqueeze(-1), merged};
}

// [parts, ...] in the dtype that weights are in, 0 where a part counts for nothing.
at::Tensor counted(at::TensorList attn, const at::Tensor& weights) {
  return at::stack(attn).to(weights.scalar_type()).masked_fill(weights == 0, 0);
}

MergeAttentions::Result forward_anywhere(const MergeAttentions& args) {
  args.check();
  const auto& [attn, lse, write_lse, out_dtype] = args;
  const auto [weights, merged] = weights_of(lse);
  const at::Tensor out = (weights * counted(attn, weights)).sum(0).to(out_dtype.value_or(attn[0].scalar_type()));
  return {out.contiguous(), write_lse ? merged : at::empty({0}, merged.options())};
}

MergeAttentionsBackward::Result backward_anywhere(const MergeAttentionsBackward& args) {
  args.check();
  const auto& [grad_out, grad_lse, attn, lse] = args;
  const at::Tensor weights = weights_of(lse).first, dout = grad_out.to(weights.scalar_type());
  at::Tensor reach = (counted(attn, weights) * dout).sum(-1, /*keepdim=*/true);
  reach = reach - (weights * reach).sum(0);
  if (grad_lse) reach = reach + grad_lse->movedim(-1, 1).unsqueeze(-1);
  const at::Tensor grad_attn = (weights * dout).to(attn[0].scalar_type());
  const at::Tensor grad_part_lse = (weights * reach).squeeze(-1).movedim(2, -1).contiguous();
  return {grad_attn, grad_part_lse};
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, CompositeExplicitAutograd, m) {
  using namespace xformers::ops;
  implement<forward_anywhere>(m);
  implement<backward_anywhere>(m);
}
