// The C++ examples of the pages of docs/ops about softmax and the fused layers, each between two markers.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

// [example]
#include "xformers/nn/feedforward/fused_mlp.h"
#include "xformers/nn/norm/layer_norm.h"

struct Block : torch::nn::Module {
  explicit Block(int64_t dim)
      : norm(register_module("norm", xformers::nn::FusedLayerNorm(dim))),
        mlp(register_module("mlp", xformers::nn::FusedMLP(xformers::nn::FusedMLPOptions{
                                       .dim_model = dim, .dropout = 0.1, .activation = xformers::Activation::kGelu}))) {
  }
  at::Tensor forward(const at::Tensor& x) { return x + mlp->forward(norm->forward(x)); }

  xformers::nn::FusedLayerNorm norm;
  xformers::nn::FusedMLP mlp;
};
// [example]

// [example]
#include "xformers/ops/bias_act_dropout/bias_act_dropout.h"

at::Tensor add_update(const at::Tensor& stream, const at::Tensor& update, const at::Tensor& bias) {
  return xformers::ops::fused_dropout(update, /*p=*/0.1, bias, xformers::Activation::kNone, /*residual=*/stream);
}
// [example]

// [example]
#include "xformers/ops/softmax/softmax.h"

at::Tensor attention_weights(const at::Tensor& scores, const at::Tensor& padding) {
  return xformers::ops::softmax(scores, padding, /*causal=*/true);
}
// [example]

TEST(FusedExamples, RunAsDocumented) {
  const at::Tensor x = at::randn({2, 5, 8});
  Block block(8);
  EXPECT_FALSE(at::equal(block.forward(x), block.forward(x)));
  block.eval();
  EXPECT_TRUE(at::equal(block.forward(x), block.forward(x)));
  const at::Tensor sum = add_update(x, at::ones({2, 5, 8}), at::ones({8}));
  EXPECT_TRUE(at::allclose(at::where(sum == x, 1, (sum - x) * 0.45), at::ones({2, 5, 8}), 1e-4, 1e-5));
  const at::Tensor weights = attention_weights(x.transpose(1, 2).matmul(x), at::zeros({8}));
  EXPECT_TRUE(at::allclose(weights.sum(-1), at::ones({2, 8})) && at::equal(weights, weights.tril()));
}
