#include "xformers/nn/functional/fourier_mix.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/fft_rfft2.h>
#include <ATen/ops/real.h>

#include "xformers/ops/common/operator_node.h"

namespace xformers::nn::functional {
namespace {

struct FourierMixKept {
  static constexpr const char* kNode = "XformersFourierMixBackward";
  static constexpr auto members() { return std::tuple{}; }
  ops::variable_list gradients(const ops::variable_list& grads, const ops::Wanted& wanted) const {
    return wanted.only(fourier_mix({grads[0]}));
  }
};

at::Tensor mix(const FourierMixArgs& args) {
  args.check();
  const at::Tensor& x = args.x;
  const int64_t seqlen = x.size(-2), dim = x.size(-1), half = dim / 2 + 1, rest = dim - half;
  at::Tensor out = at::empty(x.sizes(), x.options());
  if (x.numel() == 0) return out;
  const at::Tensor left = at::real(at::fft_rfft2(x.to(ops::compute_dtype(x))));
  out.narrow(-1, 0, half).copy_(left);
  if (rest == 0) return out;
  // out[s, half + i] is out[-s, rest - i], rows counted around.
  const at::Tensor mirrored = left.narrow(-1, 1, rest).flip(-1), right = out.narrow(-1, half, rest);
  right.select(-2, 0).copy_(mirrored.select(-2, 0));
  if (seqlen > 1) right.narrow(-2, 1, seqlen - 1).copy_(mirrored.narrow(-2, 1, seqlen - 1).flip(-2));
  return out;
}

at::Tensor mix_autograd(const FourierMixArgs& args) {
  args.check();
  const auto node = ops::record<FourierMixKept>(args.x);
  at::Tensor out = ops::with_history(ops::below_autograd(args), node);
  if (node) node->keep({});
  return out;
}

}  // namespace

void FourierMixArgs::check() const {
  const ops::Check check(kName);
  check.floating("x", x);
  if (x.dim() < 2) check.fail("x", ops::describe(x), "[..., seqlen, dim]", "give it at least two dimensions");
}

at::Tensor FourierMixArgs::empty() const { return ops::empty_result(x); }

at::Tensor fourier_mix(const FourierMixArgs& args) { return ops::call(args); }

}  // namespace xformers::nn::functional

TORCH_LIBRARY_FRAGMENT(xformers, m) { xformers::ops::define<xformers::nn::functional::FourierMixArgs>(m); }
TORCH_LIBRARY_IMPL(xformers, CompositeExplicitAutograd, m) {
  xformers::ops::implement<xformers::nn::functional::mix>(m);
}
TORCH_LIBRARY_IMPL(xformers, Autograd, m) { xformers::ops::implement<xformers::nn::functional::mix_autograd>(m); }
