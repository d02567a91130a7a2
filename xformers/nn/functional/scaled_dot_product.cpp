#include "xformers/nn/functional/scaled_dot_product.h"

#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/softmax.h>

#include <cmath>
#include <limits>

#include "xformers/nn/functional/attend.h"

namespace xformers::nn::functional {

at::Tensor scaled_dot_product(const ScaledDotProductArgs& args) {
  const ops::Check check(args.kName);
  const Heads heads(check, args.q, args.k, args.v);
  return attend(check, heads, {args.att_mask, args.key_padding_mask, args.causal}, args.p);
}

at::Tensor attention_weights(const at::Tensor& q, const at::Tensor& k, const ops::OptionalTensor& att_mask,
                             bool causal) {
  const ops::Check check("attention_weights");
  const Heads heads(check, q, k, k);
  OptionalTensor mask = att_mask;
  if (heads.folded && mask && mask->dim() == 3) {  // one per batch element, for all of its heads
    const c10::SymInt n = mask->sym_size(0), batch = heads.q.sym_size(0);
    if (n != 1 && n != batch && batch % n == 0) mask = mask->repeat_interleave_symint(batch / n, 0);
  }
  const double hidden = -std::numeric_limits<double>::infinity();
  const at::Tensor scaled = heads.q.transpose(1, 2) / std::sqrt(static_cast<double>(heads.q.size(3)));
  at::Tensor scores = at::matmul(scaled, heads.k.permute({0, 2, 3, 1}));
  if (const OptionalTensor bias = bias_of_heads(check, heads, {mask})) {
    scores = bias->scalar_type() == at::kBool ? scores.masked_fill(bias->logical_not(), hidden) : scores + *bias;
  }
  if (causal) {
    const at::Tensor band =
        at::ones_symint({scores.sym_size(2), scores.sym_size(3)}, scores.options().dtype(at::kBool));
    scores = scores.masked_fill(band.triu(1), hidden);
  }
  // The softmax of a row that sees nothing would be NaN, and its gradient.
  const at::Tensor blind = scores.detach().eq(hidden).all(-1, /*keepdim=*/true);
  const at::Tensor weights = at::softmax(scores.masked_fill(blind, 0), -1).masked_fill(blind, 0);
  return heads.folded ? weights.squeeze(1) : weights;
}

}  // namespace xformers::nn::functional

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  xformers::ops::define<xformers::nn::functional::ScaledDotProductArgs>(m);
  m.def("attention_weights(Tensor q, Tensor k, Tensor? att_mask=None, bool causal=False) -> Tensor",
        {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(xformers, CompositeImplicitAutograd, m) {
  xformers::ops::implement<xformers::nn::functional::scaled_dot_product>(m);
  m.impl("attention_weights", xformers::nn::functional::attention_weights);
}
