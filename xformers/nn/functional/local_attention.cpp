#include "xformers/nn/functional/local_attention.h"

#include "xformers/nn/functional/attend.h"

namespace xformers::nn::functional {

void check_window(int64_t window_size, bool causal) {
  if (window_size >= 1 && (causal || window_size % 2 == 1)) return;
  ops::Check("local").fail("window_size", std::to_string(window_size), causal ? "at least 1" : "an odd number",
                           "it counts the token itself and as many before as after it");
}

at::Tensor local_attention(const LocalAttentionArgs& args) {
  check_window(args.window_size, args.causal);
  const ops::Check check(args.kName);
  const Heads heads(check, args.q, args.k, args.v);
  const int64_t half = args.window_size / 2;
  const Window window = args.causal ? Window{args.window_size, 0} : Window{half, half};
  return attend(check, heads, {args.att_mask, args.key_padding_mask, args.masked_causal, window}, args.p);
}

}  // namespace xformers::nn::functional

TORCH_LIBRARY_FRAGMENT(xformers, m) { xformers::ops::define<xformers::nn::functional::LocalAttentionArgs>(m); }
TORCH_LIBRARY_IMPL(xformers, CompositeImplicitAutograd, m) {
  xformers::ops::implement<xformers::nn::functional::local_attention>(m);
}
