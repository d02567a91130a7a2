#include "xformers/nn/functional/favor.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/linalg_qr.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/where.h>

#include <cmath>

#include "xformers/ops/linear_attention/linear_attention.h"

namespace xformers::nn::functional {
at::Tensor favor_features(const FavorFeaturesArgs& args) {
  const at::ScalarType dtype = ops::compute_dtype(args.x);
  const at::Tensor x = args.x.to(dtype) * std::pow(static_cast<double>(args.x.size(-1)), -0.25);
  const at::Tensor squares = x.square().sum(-1, /*keepdim=*/true);
  const auto count = static_cast<double>(args.omega.size(1) * (args.paired ? 2 : 1));
  at::Tensor offset = -0.5 * squares - 0.5 * std::log(count) + args.epsilon;
  if (args.normalize) offset = offset - squares.amax({-2}, /*keepdim=*/true);
  const at::Tensor p = at::matmul(x, args.omega.to(dtype));
  return ((args.paired ? at::cat({p, -p}, -1) : p) + offset).exp();
}

at::Tensor random_orthogonal(int64_t blocks, int64_t dim, bool of_gaussian_length, std::optional<at::Device> device) {
  const auto options = at::TensorOptions().dtype(at::kFloat).device(device.value_or(at::kCPU));
  const auto [q, r] = at::linalg_qr(at::randn({blocks, dim, dim}, options));
  // With the signs of R's diagonal every orthogonal matrix is as likely as any other.
  const at::Tensor signs = r.diagonal(0, -2, -1).sign();
  const at::Tensor rows = (q * at::where(signs == 0, 1, signs).unsqueeze(-2)).transpose(-1, -2);
  if (!of_gaussian_length) return rows;
  return rows * at::randn({blocks, dim, dim}, options).norm(2, {-1}, /*keepdim=*/true);
}

at::Tensor draw_omega(int64_t head_dim, int64_t columns, bool constant_length, std::optional<at::Device> device) {
  const int64_t blocks = (head_dim + columns - 1) / columns;
  const at::Tensor rows = random_orthogonal(blocks, columns, !constant_length, device).flatten(0, 1);
  const at::Tensor omega = rows.narrow(0, 0, head_dim).contiguous();
  return constant_length ? omega * std::sqrt(static_cast<double>(head_dim)) : omega;
}

at::Tensor favor_attention(const FavorArgs& args) {
  const ops::Check check(FavorArgs::kName);
  if (args.q.dim() != 3 && args.q.dim() != 4) {
    check.fail("q", ops::describe(args.q), "[batch * heads, seqlen, head_dim] or [batch, seqlen, heads, head_dim]",
               "give it 3 or 4 dimensions");
  }
  const bool folded = args.q.dim() == 3;
  const auto with_heads = [&](const char* name, const at::Tensor& t) {
    check.dims(name, t, args.q.dim(), "as many dimensions as q has");
    return folded ? t.unsqueeze(2) : t;
  };
  const at::Tensor out =
      ops::linear_attention(with_heads("q", args.q), with_heads("k", args.k), with_heads("v", args.v),
                            {.omega = args.omega, .paired = args.paired, .causal = args.causal})
          .out;
  return folded ? out.squeeze(2) : out;
}

}  // namespace xformers::nn::functional

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  using namespace xformers::nn::functional;
  xformers::ops::define<FavorArgs, FavorFeaturesArgs>(m);
  m.def("_random_orthogonal(int blocks, int dim, bool of_gaussian_length, *, Device? device=None) -> Tensor",
        random_orthogonal);
  m.def("_draw_omega(int head_dim, int columns, bool constant_length, *, Device? device=None) -> Tensor", draw_omega,
        {at::Tag::nondeterministic_seeded});
}
TORCH_LIBRARY_IMPL(xformers, CompositeImplicitAutograd, m) {
  using namespace xformers::nn::functional;
  xformers::ops::implement<favor_attention>(m);
  xformers::ops::implement<favor_features>(m);
}
