// Softmax and the fused layers through their C++ functions and modules. Accuracy in depth: tests/python.
#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/nn/modules/container/modulelist.h>

#include "xformers/nn/feedforward/fused_dropout_bias.h"
#include "xformers/nn/feedforward/fused_linear.h"
#include "xformers/nn/feedforward/fused_mlp.h"
#include "xformers/nn/feedforward/swiglu.h"
#include "xformers/nn/norm/layer_norm.h"
#include "xformers/nn/norm/rms_norm.h"
#include "xformers/nn/positional/rotary_embedding.h"
#include "xformers/ops/bias_act_dropout/bias_act_dropout.h"
#include "xformers/ops/norm/norm.h"
#include "xformers/ops/rope/rope.h"
#include "xformers/ops/softmax/softmax.h"
#include "xformers/ops/swiglu/swiglu.h"

namespace xformers {
namespace {

at::Tensor random(at::IntArrayRef sizes) { return at::randn(sizes, at::kDouble); }

std::vector<std::string> names(const torch::nn::Module& module) {
  std::vector<std::string> result;
  for (const auto& parameter : module.named_parameters()) {
    if (parameter.value().defined()) result.push_back(parameter.key());
  }
  return result;
}
using Names = std::vector<std::string>;

TEST(FusedOperators, Softmax) {
  const at::Tensor x = random({2, 3, 5, 5}).requires_grad_(), mask = random({3, 1, 5}).requires_grad_();
  const at::Tensor hidden = at::ones({5, 5}, at::kBool).triu(1);
  const at::Tensor scores = (x + mask).masked_fill(hidden, -INFINITY), weights = random(x.sizes());
  for (bool log : {false, true}) {
    const at::Tensor out = log ? ops::log_softmax(x, mask, true) : ops::softmax(x, mask, true);
    const at::Tensor expected = log ? at::log_softmax(scores, -1) : at::softmax(scores, -1);
    EXPECT_TRUE(at::allclose(out, expected));
    x.mutable_grad() = mask.mutable_grad() = at::Tensor();
    (out.masked_fill(hidden, 0) * weights).sum().backward();
    const at::Tensor dx = x.grad().clone(), dmask = mask.grad().clone();
    x.mutable_grad() = mask.mutable_grad() = at::Tensor();
    (expected.masked_fill(hidden, 0) * weights).sum().backward({}, /*keep_graph=*/true);
    EXPECT_TRUE(at::allclose(x.grad(), dx) && at::allclose(mask.grad(), dmask));
  }
  EXPECT_THROW(ops::softmax(x, random({4, 5})), Error);
}

TEST(FusedOperators, BiasActivationDropout) {
  const at::Tensor x = random({7, 20}), bias = random({20}), residual = random({7, 20});
  const at::Tensor plain = at::leaky_relu(x + bias) + residual;
  EXPECT_TRUE(at::allclose(ops::fused_dropout(x, 0, bias, Activation::kLeakyRelu, residual), plain));
  EXPECT_TRUE(at::allclose(ops::bias_act_dropout(x, bias, residual, Activation::kLeakyRelu), plain));
  at::manual_seed(3);
  const at::Tensor one = ops::fused_dropout(x, 0.5), two = ops::fused_dropout(x, 0.5);
  at::manual_seed(3);
  EXPECT_TRUE(at::equal(one, ops::fused_dropout(x, 0.5)) && at::equal(two, ops::fused_dropout(x, 0.5)));
  EXPECT_FALSE(at::equal(one, two));
  EXPECT_TRUE(at::allclose(one, at::where(one != 0, 2 * x, 0 * x)));
  EXPECT_THROW(ops::fused_dropout(x, 2), Error);
  EXPECT_THROW(ops::bias_act_dropout(x, {}, {}, Activation::kNone, 0.5), Error);
}

TEST(Modules, Norms) {
  const at::Tensor x = at::randn({3, 8});
  nn::RMSNorm rms(8);
  EXPECT_EQ(names(*rms), Names{"weight"});
  EXPECT_TRUE(at::equal(rms->forward(x), ops::rms_norm(x, rms->weight)));
  EXPECT_TRUE(names(*nn::RMSNorm(nn::RMSNormOptions{.dim = 8, .include_weight = false})).empty());
  {
    const at::NoGradGuard no_grad;
    const at::Tensor y = at::randn({3, 8}), sum = x.clone();
    EXPECT_TRUE(at::allclose(rms->increment_and_forward_(sum, y), ops::rms_norm(x + y)));
    EXPECT_TRUE(at::equal(sum, x + y));
  }
  nn::FusedLayerNorm layer(8);
  EXPECT_EQ(names(*layer), (Names{"weight", "bias"}));
  EXPECT_TRUE(at::allclose(layer->forward(x), at::layer_norm(x, {8}, {}, {}, 1e-6), 1e-4, 1e-5));
  EXPECT_TRUE(names(*nn::FusedLayerNorm(nn::FusedLayerNormOptions{.dim = 8, .affine = false})).empty());
}

TEST(Modules, SwiGLU) {
  nn::SwiGLU layer(nn::SwiGLUOptions{.in_features = 6, .hidden_features = 8});
  EXPECT_EQ(names(*layer), (Names{"w12.weight", "w12.bias", "w3.weight", "w3.bias"}));
  const at::Tensor x = at::randn({4, 6});
  const auto halves = layer->w12->forward(x).chunk(2, -1);
  EXPECT_TRUE(at::allclose(layer->forward(x), layer->w3->forward(at::silu(halves[0]) * halves[1]), 1e-4, 1e-5));
  EXPECT_EQ(names(*nn::SwiGLU(nn::SwiGLUOptions{6, 8, 5, false})), (Names{"w12.weight", "w3.weight"}));
}

TEST(Modules, FusedLayers) {
  const at::Tensor x = at::randn({4, 6});
  nn::FusedLinear linear(nn::FusedLinearOptions{6, 10, /*bias=*/true, Activation::kSquaredRelu});
  EXPECT_EQ(names(*linear), (Names{"weight", "bias"}));
  EXPECT_TRUE(
      at::allclose(linear->forward(x), at::relu(at::linear(x, linear->weight, linear->bias)).square(), 1e-4, 1e-5));

  nn::FusedDropoutBias dropout(nn::FusedDropoutBiasOptions{.p = 0.5, .width = 6});
  EXPECT_FALSE(at::equal(dropout->forward(x), dropout->forward(x)));
  dropout->eval();
  EXPECT_TRUE(at::equal(dropout->forward(x), x));
  EXPECT_THROW(nn::FusedDropoutBias(nn::FusedDropoutBiasOptions{.p = 1}), Error);

  nn::FusedMLP mlp(nn::FusedMLPOptions{.dim_model = 6, .dropout = 0.3, .activation = Activation::kRelu});
  EXPECT_EQ(names(*mlp), (Names{"mlp.0.weight", "mlp.1.bias", "mlp.2.weight", "mlp.3.bias"}));
  mlp->eval();
  const auto parameters = mlp->named_parameters();
  const at::Tensor hidden = at::relu(at::linear(x, parameters["mlp.0.weight"]));
  EXPECT_TRUE(at::allclose(mlp->forward(x), at::linear(hidden, parameters["mlp.2.weight"]), 1e-4, 1e-5));
  const auto twin = std::dynamic_pointer_cast<nn::FusedMLPImpl>(mlp->clone());
  EXPECT_TRUE(at::equal(twin->forward(x), mlp->forward(x)));
  EXPECT_FALSE(twin->named_parameters()["mlp.0.weight"].is_same(parameters["mlp.0.weight"]));
}

TEST(Modules, RotaryEmbedding) {
  nn::RotaryEmbedding layer(8);
  const at::Tensor q = at::randn({2, 3, 8}), k = at::randn({2, 5, 8});
  const auto [turned_q, turned_k] = layer->forward(q, k);
  EXPECT_TRUE(at::equal(turned_q, ops::rotary(q)) && at::equal(turned_k, ops::rotary(k)));
  EXPECT_TRUE(at::allclose(layer->named_buffers()["inv_freq"], at::tensor({1.0f, 0.1f, 0.01f, 0.001f})));
}

}  // namespace
}  // namespace xformers
