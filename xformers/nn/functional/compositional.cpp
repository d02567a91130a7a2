#include "xformers/nn/functional/compositional.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/softmax.h>

#include <cmath>

#include "xformers/nn/functional/attend.h"

namespace xformers::nn::functional {
namespace {

constexpr int64_t kWidestOnCuda = 256;  // head_dim_v of the tensor-core kernels

// The retrievals [batch, seqlen_q, heads, rules, dim]: the rules lie side by side as one wide value that the heads
// share.
at::Tensor retrieve(const ops::Check& check, const CompositionalArgs& args) {
  const c10::SymInt batch = args.v.sym_size(0), nk = args.v.sym_size(1), dim = args.v.sym_size(3);
  const int64_t rules = args.v.size(2);
  const c10::SymInt num_heads = args.q.sym_size(2), nq = args.q.sym_size(1);
  at::Tensor k = args.k, v = args.v;
  const Heads shapes(check, args.q, k, v.narrow(2, 0, 1).expand_symint({batch, nk, num_heads, dim}));
  const Masks masks{args.att_mask, args.key_padding_mask, args.causal};
  if (args.key_padding_mask) {
    const at::Tensor padding = padding_of_heads(check, *args.key_padding_mask, shapes);
    k = without_padding(k, padding);
    v = without_padding(v, padding.sym_size(1) == 1 ? padding : padding.narrow(1, 0, 1));
  }
  const OptionalTensor bias = bias_of_heads(check, shapes, masks);
  const OptionalTensor state = draw_state(args.p, args.q);
  const int64_t fitting = args.q.is_cuda() ? std::max<int64_t>(1, kWidestOnCuda / args.v.size(3)) : rules;
  std::vector<at::Tensor> parts;
  for (int64_t first = 0; first < rules; first += fitting) {
    const int64_t count = std::min(fitting, rules - first);
    const at::Tensor wide = v.narrow(2, first, count)
                                .reshape_symint({batch, nk, 1, count * dim})
                                .expand_symint({batch, nk, num_heads, count * dim});
    parts.push_back(attend_biased(args.q, k, wide, bias, causal_window(args.causal), args.p, args.scale, state)
                        .view_symint({batch, nq, num_heads, count, dim}));
  }
  return parts.size() == 1 ? parts[0] : at::cat(parts, 3);
}

// [batch, seqlen_q, heads, rules]
at::Tensor scores_of(const ops::Check& check, const CompositionalArgs& args, const at::Tensor& a) {
  const int64_t dim = a.size(4);
  const at::Tensor& selection = args.selection_q;
  const auto times = [](const at::Tensor& x, const at::Tensor& column) {  // [..., rows, n] [..., n] -> [..., rows]
    return at::matmul(x, column.unsqueeze(-1)).squeeze(-1);
  };
  if (args.qk_rule) {
    // selection . (W a + b) = (W^T selection) . a + selection . b: one product per token and head instead of one per
    // rule.
    const at::Tensor s = selection * std::pow(static_cast<double>(selection.size(3)), -0.5);
    const at::Tensor turned = at::matmul(s, args.score_weight);
    at::Tensor scores = (a * turned.unsqueeze(3)).sum(-1);
    return args.score_bias ? scores + times(s, *args.score_bias).unsqueeze(-1) : scores;
  }
  check.equal("score_weight.dim", args.score_weight.sym_size(1), a.sym_size(4) + selection.sym_size(3),
              "the network reads a retrieval and the selection query side by side");
  const at::Tensor of_a = args.score_weight.narrow(1, 0, dim),
                   of_selection = args.score_weight.slice(1, dim, std::nullopt);
  const at::Tensor first = at::linear(a, of_a) + at::linear(selection, of_selection, args.score_bias).unsqueeze(3);
  if (!args.score_weight2) return first.squeeze(-1);
  return at::linear(at::relu(first), *args.score_weight2, args.score_bias2).squeeze(-1);
}

}  // namespace

at::Tensor compositional_attention(const CompositionalArgs& args) {
  const ops::Check check(args.kName);
  for (const auto& [name, t] : {std::pair{"q", &args.q}, std::pair{"k", &args.k}, std::pair{"v", &args.v},
                                std::pair{"selection_q", &args.selection_q}}) {
    check.dims(name, *t, 4, "[batch, seqlen, heads or rules, dim]");
  }
  const at::Tensor a = retrieve(check, args);
  const at::Tensor weights = at::softmax(scores_of(check, args, a), -1).to(a.scalar_type());
  return (a * weights.unsqueeze(-1)).sum(3);
}

}  // namespace xformers::nn::functional

TORCH_LIBRARY_FRAGMENT(xformers, m) { xformers::ops::define<xformers::nn::functional::CompositionalArgs>(m); }
TORCH_LIBRARY_IMPL(xformers, CompositeImplicitAutograd, m) {
  xformers::ops::implement<xformers::nn::functional::compositional_attention>(m);
}
