#include "xformers/nn/functional/scaled_dot_product.h"

#include "xformers/nn/functional/attend.h"

namespace xformers::nn::functional {

at::Tensor scaled_dot_product(const ScaledDotProductArgs& args) {
  const ops::Check check(args.kName);
  const Heads heads(check, args.q, args.k, args.v);
  return attend(check, heads, {args.att_mask, args.key_padding_mask, args.causal}, args.p);
}

}  // namespace xformers::nn::functional

TORCH_LIBRARY_FRAGMENT(xformers, m) { xformers::ops::define<xformers::nn::functional::ScaledDotProductArgs>(m); }
TORCH_LIBRARY_IMPL(xformers, CompositeImplicitAutograd, m) {
  xformers::ops::implement<xformers::nn::functional::scaled_dot_product>(m);
}
