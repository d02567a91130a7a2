// Gradients of merge_attentions.
#include <ATen/ops/zeros.h>

#include "xformers/ops/common/operator_node.h"
#include "xformers/ops/merge_attentions/merge_attentions_op.h"

namespace xformers::ops {
namespace {

struct MergeAttentionsKept {
  static constexpr const char* kNode = "XformersMergeAttentionsBackward";
  std::vector<at::Tensor> attn{}, lse{};
  static constexpr auto members() { return std::tuple{&MergeAttentionsKept::attn, &MergeAttentionsKept::lse}; }

  // From those of out and of lse: of the parts of attn, then of those of lse.
  variable_list gradients(const variable_list& grads, const Wanted&) const {
    const at::Tensor grad_out =
        grads[0].defined() ? grads[0] : at::zeros_symint(attn[0].sym_sizes(), attn[0].options());
    const auto [dattn, dlse] = call(MergeAttentionsBackward{grad_out, to_optional(grads[1]), attn, lse});
    variable_list result = dattn.unbind(0);
    for (const at::Tensor& grad : dlse.unbind(0)) result.push_back(grad);
    return result;
  }
};

MergeAttentions::Result merge_attentions_autograd(const MergeAttentions& args) {
  const auto node = record<MergeAttentionsKept>(args.attn, args.lse);
  if (node && !args.write_lse) {
    Check(args.kName)
        .fail("write_lse", "False where a gradient is wanted", "True", "leave it out, or call under torch.no_grad()");
  }
  auto [out, lse] = below_autograd(args);
  if (!node) return {out, lse};
  node->keep({args.attn.vec(), args.lse.vec()});
  return {with_history(out, node), with_history(lse, node)};
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, Autograd, m) {
  using namespace xformers::ops;
  implement<merge_attentions_autograd>(m);
  implement_no_gradients<MergeAttentionsBackward>(m);  // refuses double backward
}
