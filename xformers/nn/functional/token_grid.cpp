#include "xformers/nn/functional/token_grid.h"

#include <ATen/ops/avg_pool2d.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/linear.h>

#include "xformers/nn/functional/embedding.h"

namespace xformers::nn::functional {
at::Tensor pooling_attention(const PoolingArgs& args) {
  const ops::Check check(args.kName);
  const at::Tensor x = args.x.contiguous(), image = grid_of(args.kName, x);
  if (args.pool_size < 1) check.fail("pool_size", std::to_string(args.pool_size), "at least 1", "3 is usual");
  const int64_t padding = args.padding == -1 ? args.pool_size / 2 : args.padding, side = image.size(2);
  const int64_t pooled = (side + 2 * padding - args.pool_size) / std::max<int64_t>(args.stride, 1) + 1;
  if (args.stride < 1 || padding < 0 || pooled != side) {
    check.fail("pool_size",
               std::to_string(args.pool_size) + " with stride " + std::to_string(args.stride) + " and padding " +
                   std::to_string(padding),
               "a window that leaves as many tokens as there are",
               "use an odd pool_size, stride 1 and pool_size / 2 as padding");
  }
  // On a GPU PyTorch's backward of rows of channels is wrong (2.11).
  return grid_to_tokens(at::avg_pool2d(image.is_cuda() ? image.contiguous() : image, {args.pool_size}, {args.stride},
                                       {padding}, /*ceil_mode=*/false,
                                       /*count_include_pad=*/false)) -
         x;
}

at::Tensor visual_attention(const VisualArgs& args) {
  const ops::Check check(args.kName);
  const at::Tensor x = args.x.contiguous();
  const c10::SymInt dim = x.sym_size(-1);
  grid_side(args.kName, x);  // refuses what is no grid
  check.equal("x.dim", dim, args.weight_in.sym_size(1), "the layer was built for another dim_model");
  // A convolution of 1 x 1 is a product over the features.
  const auto mixed = [](const at::Tensor& t, const at::Tensor& w, const at::Tensor& b) {
    return at::linear(t, w.flatten(1), b);
  };
  const at::Tensor u = at::gelu(mixed(x, args.weight_in, args.bias_in));
  const int64_t groups = x.size(2);
  const at::Tensor near = at::conv2d(grid_of(args.kName, u), args.weight_local, args.bias_local, 1, 2, 1, groups);
  const at::Tensor wide = at::conv2d(near, args.weight_wide, args.bias_wide, 1, 9, 3, groups);
  const at::Tensor gate = mixed(grid_to_tokens(wide), args.weight_mix, args.bias_mix);
  return x + mixed(u * gate, args.weight_out, args.bias_out);
}

}  // namespace xformers::nn::functional

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  using namespace xformers::nn::functional;
  xformers::ops::define<PoolingArgs, VisualArgs>(m);
}
TORCH_LIBRARY_IMPL(xformers, CompositeImplicitAutograd, m) {
  using namespace xformers::nn::functional;
  xformers::ops::implement<pooling_attention>(m);
  xformers::ops::implement<visual_attention>(m);
}
