// The C++ example of docs/ops/sparse24.md, and what it gives.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

// [example]
#include "xformers/ops/sparse24/sparse24.h"

at::Tensor sparse24_layer(const at::Tensor& x, const at::Tensor& weight) {
  return xformers::ops::sparse24_linear(x, weight, std::nullopt, "largest_abs_values_greedy");
}
// [example]

namespace xformers::ops {
namespace {

TEST(Sparse24, Example) {
  at::manual_seed(0);
  const at::Tensor x = at::randn({2, 3, 70}), weight = at::randn({33, 70}).requires_grad_();
  const Sparse24Matrix sparse = sparsify24(weight.detach(), "largest_abs_values_greedy");
  const at::Tensor dense = to_dense(sparse), out = ::sparse24_layer(x, weight);
  EXPECT_TRUE(at::allclose(out, at::linear(x, dense), 1e-4, 1e-4));
  EXPECT_TRUE(at::allclose(sparse24_matmul(sparse, x[0].t()), dense.matmul(x[0].t()), 1e-4, 1e-4));
  out.sum().backward();
  EXPECT_EQ((weight.grad() * (dense == 0)).abs().max().item<float>(), 0);
  const at::Tensor z = at::randn({5, 70}), y = sparse24_activated_linear(z, weight, std::nullopt, "squared_relu");
  const at::Tensor hidden = to_dense(sparsify24(at::relu(z).square()));
  EXPECT_TRUE(at::allclose(y, at::linear(hidden, weight), 1e-4, 1e-4));
}

}  // namespace
}  // namespace xformers::ops
