// Feed-forwards, embeddings, residual and reversible paths as C++ modules, against LibTorch's own operators. Accuracy
// in depth, and every option: tests/python.
#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/nn/modules/linear.h>

#include "xformers/kernels/base/error.h"
#include "xformers/nn/feedforward/conv2d_feedforward.h"
#include "xformers/nn/feedforward/fused_mlp.h"
#include "xformers/nn/feedforward/mixture_of_experts.h"
#include "xformers/nn/feedforward/mlp.h"
#include "xformers/nn/functional/embedding.h"
#include "xformers/nn/functional/initialization.h"
#include "xformers/nn/functional/residual.h"
#include "xformers/nn/positional/embeddings.h"
#include "xformers/nn/positional/rotary_embedding.h"
#include "xformers/nn/registry/registry.h"
#include "xformers/nn/residual/residual.h"
#include "xformers/nn/reversible/reversible.h"

namespace xformers::nn {
namespace {

std::vector<std::string> names(const torch::nn::Module& module) {
  std::vector<std::string> result;
  for (const auto& parameter : module.named_parameters()) {
    if (parameter.value().defined()) result.push_back(parameter.key());
  }
  return result;
}
using Names = std::vector<std::string>;

template <class Module>
Module in_double(Module module) {
  module->to(at::kDouble);
  return module;
}

TEST(Components, Mlp) {
  MLP layer = in_double(MLP(MLPOptions{.dim_model = 6, .activation = "gelu", .hidden_layer_multiplier = 2}));
  EXPECT_EQ(names(*layer), (Names{"mlp.0.weight", "mlp.0.bias", "mlp.3.weight", "mlp.3.bias"}));
  const auto p = layer->parameters();
  const at::Tensor x = at::randn({3, 4, 6}, at::kDouble);
  const at::Tensor expected = at::linear(at::gelu(at::linear(x, p[0], p[1])), p[2], p[3]);
  EXPECT_TRUE(at::allclose(layer->forward(x), expected));
  EXPECT_TRUE(at::allclose(std::dynamic_pointer_cast<MLPImpl>(layer->clone())->forward(x), expected));
  EXPECT_THROW(MLP(MLPOptions{.dim_model = 6, .activation = "tanh"}), Error);
}

TEST(Components, ConvFeedforward) {
  Conv2DFeedforward layer = in_double(Conv2DFeedforward(Conv2DFeedforwardOptions{.dim_model = 4}));
  EXPECT_EQ(names(*layer), (Names{"conv_mlp.0.weight", "conv_mlp.0.bias", "conv_mlp.1.weight", "conv_mlp.1.bias",
                                  "conv_mlp.3.weight", "conv_mlp.3.bias"}));
  const auto p = layer->parameters();
  const at::Tensor x = at::randn({2, 9, 4}, at::kDouble);
  const at::Tensor image = x.view({2, 3, 3, 4}).permute({0, 3, 2, 1});  // the columns of the grid first
  at::Tensor expected = at::conv2d(at::conv2d(image, p[0], p[1]), p[2], p[3], 1, 1, 1, /*groups=*/4);
  expected = at::conv2d(at::gelu(expected), p[4], p[5]).permute({0, 3, 2, 1}).reshape({2, 9, 4});
  EXPECT_TRUE(at::allclose(layer->forward(x), expected));
  EXPECT_TRUE(layer->requires_squared_context());
  EXPECT_THROW(layer->forward(x.narrow(1, 0, 8)), Error);
}

TEST(Components, Experts) {
  MixtureOfExpertsOptions options{.dim_model = 4, .activation = "relu", .number_of_experts = 3};
  options.capacity_factor.reset();
  options.top_k = 3;  // all experts: a sum weighted by the whole softmax
  MixtureOfExperts layer = in_double(MixtureOfExperts(options));
  EXPECT_EQ(names(*layer)[0], "gate.wg.weight");
  EXPECT_EQ(names(*layer)[1], "moe.experts.0.mlp.0.weight");
  const auto p = layer->parameters();
  const at::Tensor x = at::randn({2, 5, 4}, at::kDouble), gates = at::softmax(at::linear(x, p[0]), -1);
  at::Tensor expected = at::zeros_like(x);
  for (int64_t e = 0; e < 3; ++e) {
    const auto* w = &p[1 + 4 * e];
    expected += gates.narrow(-1, e, 1) * at::linear(at::relu(at::linear(x, w[0], w[1])), w[2], w[3]);
  }
  EXPECT_TRUE(at::allclose(layer->forward(x), expected));
  EXPECT_EQ(layer->aux_loss.dim(), 0);
  options.gate = "top_3";
  EXPECT_THROW(MixtureOfExperts{options}, Error);
}

TEST(Components, Embeddings) {
  const at::Tensor pe = SinePositionalEmbedding(SinePositionalEmbeddingOptions{3})->forward(at::zeros({1, 2, 3}));
  EXPECT_TRUE(at::allclose(pe[0][1],
                           at::tensor({std::sin(1.0), std::cos(1.0), std::sin(std::pow(1e4, -2.0 / 3))}, at::kFloat)));
  VocabEmbedding vocab(VocabEmbeddingOptions{.dim_model = 4, .seq_len = 5, .vocab_size = 7});
  EXPECT_EQ(names(*vocab), (Names{"position_embeddings.weight", "word_embeddings.weight"}));
  EXPECT_TRUE(at::equal(vocab->forward(at::full({1, 2}, 3, at::kInt))[0],
                        vocab->word_embeddings->weight[3] + vocab->position_embeddings->weight.narrow(0, 0, 2)));
  LearnablePositionalEmbedding learnable(
      LearnablePositionalEmbeddingOptions{.seq_len = 3, .dim_model = 4, .add_class_token = true});
  EXPECT_EQ(learnable->forward(at::zeros({2, 3, 4})).sizes(), (std::vector<int64_t>{2, 4, 4}));
  PatchEmbedding patches(PatchEmbeddingOptions{.in_channels = 3, .out_channels = 4, .kernel_size = 2, .stride = 2});
  EXPECT_EQ(names(*patches), (Names{"1.weight", "1.bias"}));
  EXPECT_EQ(patches->forward(at::zeros({1, 3, 4, 6})).sizes(), (std::vector<int64_t>{1, 6, 4}));
  const RotaryEmbedding rotary(8, 500000.0, ops::RotaryScaling{.kind = "linear", .factor = 2});
  EXPECT_TRUE(at::allclose(rotary->inv_freq, RotaryEmbedding(8, 500000.0)->inv_freq / 2));
  const at::Tensor x = at::randn({2, 6, 8});
  EXPECT_TRUE(at::allclose(simplicial_embedding(x, 2).view({2, 6, 2, 4}).sum(-1), at::ones({2, 6, 2})));
}

WrappedLayer linear_of_sum(torch::nn::Linear linear) {
  return {linear.ptr(), [linear](const std::vector<at::Tensor>& inputs) mutable {
            at::Tensor sum = at::zeros_like(inputs[0]);
            for (const at::Tensor& x : inputs) sum = sum + x;
            return linear->forward(sum);
          }};
}

TEST(Components, ResidualPaths) {
  torch::nn::Linear linear(4, 4);
  const at::Tensor x = at::randn({3, 4}), y = at::randn({3, 4});
  const auto norm = [](const at::Tensor& t) { return at::layer_norm(t, {4}, {}, {}, 1e-6); };
  const auto plain = [&](const at::Tensor& t) { return at::linear(t, linear->weight, linear->bias); };
  const WrappedLayer pre = residual(pre_norm(build_norm(4, "layernorm"), linear_of_sum(linear)));
  EXPECT_EQ(names(*pre.module),
            (Names{"layer.norm.weight", "layer.norm.bias", "layer.sublayer.weight", "layer.sublayer.bias"}));
  EXPECT_TRUE(at::allclose(pre.call({x, y}), x + plain(norm(x) + norm(y)), 1e-4, 1e-5));
  const WrappedLayer deep = post_norm(build_norm(4, "layernorm"), residual(linear_of_sum(linear), 1.5));
  EXPECT_TRUE(at::allclose(deep.call({x}), norm(1.5 * x + plain(x)), 1e-4, 1e-5));
  const WrappedLayer none = post_norm(build_norm(4, "skip"), linear_of_sum(linear));
  EXPECT_TRUE(at::allclose(none.call({x, x}), plain(2 * x)));
  EXPECT_THROW(build_norm(4, "batch"), Error);
  EXPECT_EQ(to_residual_norm_style("deepnorm"), ResidualNormStyle::kDeepNorm);
  EXPECT_NEAR(deepnorm_coefficients(8, 0).encoder_alpha, 2, 1e-12);
}

TEST(Components, Reversible) {
  std::vector<ReversibleSequenceImpl::Pair> pairs;
  std::vector<MLP> layers;
  for (int i = 0; i < 6; ++i) {
    layers.push_back(
        in_double(MLP(MLPOptions{.dim_model = 4, .dropout = 0.3, .activation = "gelu", .hidden_layer_multiplier = 2})));
  }
  for (int i = 0; i < 6; i += 2) pairs.emplace_back(reversible_layer(layers[i]), reversible_layer(layers[i + 1]));
  ReversibleSequence sequence(pairs);
  EXPECT_EQ(names(*sequence)[0], "blocks.0.f.net.mlp.0.weight");
  at::Tensor x = at::randn({3, 8}, at::kDouble).requires_grad_();
  std::vector<at::Tensor> leaves{x};
  for (const at::Tensor& parameter : sequence->parameters()) leaves.push_back(parameter);
  const at::Tensor grad = at::randn({3, 8}, at::kDouble);
  const auto stored = [&] {
    at::Tensor y = x;
    for (size_t i = 0; i < layers.size(); i += 2) {
      const auto halves = y.chunk(2, -1);
      const at::Tensor y1 = halves[0] + layers[i]->forward(halves[1]);
      y = at::cat({y1, halves[1] + layers[i + 1]->forward(y1)}, -1);
    }
    return y;
  };
  at::manual_seed(3);
  const at::Tensor expected = stored(), out = (at::manual_seed(3), sequence->forward(x));
  EXPECT_TRUE(at::equal(out, expected));
  const auto one = torch::autograd::grad({out}, leaves, {grad}),
             other = torch::autograd::grad({expected}, leaves, {grad});
  for (size_t i = 0; i < leaves.size(); ++i) EXPECT_TRUE(at::allclose(one[i], other[i], 0, 1e-10));
  EXPECT_THROW(sequence->forward(at::ones({3, 7}, at::kDouble)), Error);
}

// Layers that take x and further tensors, or x alone.
struct GatedImpl : torch::nn::Module {
  GatedImpl() : weight(register_parameter("weight", at::randn({4, 4}, at::kDouble))) {}
  at::Tensor forward(const at::Tensor& x, const std::vector<at::Tensor>& arguments) {
    at::Tensor out = at::tanh(x.matmul(weight));
    for (const at::Tensor& t : arguments) out = out * t;
    return out;
  }
  at::Tensor weight;
};
TORCH_MODULE(Gated);

TEST(Components, ReversibleWithFurtherArguments) {
  const Gated f, g;
  ReversibleSequence sequence(std::vector<ReversibleSequenceImpl::Pair>{{reversible_layer(f), reversible_layer(g)},
                                                                        {reversible_layer(g), reversible_layer(f)}});
  const at::Tensor x = at::randn({3, 8}, at::kDouble).requires_grad_(),
                   source = at::randn({3, 1}, at::kDouble).requires_grad_(), fixed = at::randn({1, 4}, at::kDouble);
  const std::vector<at::Tensor> leaves{x, source, f->weight, g->weight}, none;
  for (const ReversibleRoute route : {ReversibleRoute{}, ReversibleRoute{true, true}, ReversibleRoute{false, true}}) {
    const std::vector<at::Tensor> arguments{source.exp(), fixed};  // one of them made by what goes before
    const auto &of_f = route.f ? arguments : none, &of_g = route.g ? arguments : none;
    at::Tensor y = x;
    for (const auto& [one, other] : {std::pair{f, g}, std::pair{g, f}}) {
      const auto halves = y.chunk(2, -1);
      const at::Tensor y1 = halves[0] + one.ptr()->forward(halves[1], of_f);
      y = at::cat({y1, halves[1] + other.ptr()->forward(y1, of_g)}, -1);
    }
    const at::Tensor out = sequence->forward(x, arguments, route);
    EXPECT_TRUE(at::allclose(out, y));
    const auto got = torch::autograd::grad({out.sin().sum()}, leaves, {}, /*retain_graph=*/true),
               expected = torch::autograd::grad({y.sin().sum()}, leaves);
    for (size_t i = 0; i < leaves.size(); ++i) EXPECT_TRUE(at::allclose(got[i], expected[i], 0, 1e-10)) << i;
  }
  torch::nn::Linear alone(4, 4);
  alone->to(at::kDouble);
  ReversibleSequence other(std::vector<ReversibleSequenceImpl::Pair>{{reversible_layer(f), reversible_layer(alone)}});
  EXPECT_EQ(other->forward(x, {source}).sizes(), x.sizes());
  EXPECT_THROW(other->forward(x, {source}, {.f = true, .g = true}), Error);
}

// A weight that forward has cast without gradients must not be found again when backward repeats the layer.
TEST(Components, ReversibleWithinAutocast) {
  torch::nn::Linear f(4, 4), g(4, 4);
  ReversibleSequence sequence(std::vector<ReversibleSequenceImpl::Pair>{{reversible_layer(f), reversible_layer(g)}});
  const at::Tensor x = at::randn({3, 8});
  const auto gradients = [&](bool within) {
    sequence->zero_grad();
    at::autocast::set_autocast_enabled(at::kCPU, true);
    at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
    const at::Tensor loss = sequence->forward(x).square().sum();
    if (within) loss.backward();
    at::autocast::set_autocast_enabled(at::kCPU, false);
    at::autocast::clear_cache();
    if (!within) loss.backward();
    std::vector<at::Tensor> result;
    for (const at::Tensor& parameter : sequence->parameters()) result.push_back(parameter.grad());
    return result;
  };
  const auto within = gradients(true), behind = gradients(false);
  for (size_t i = 0; i < within.size(); ++i) {
    ASSERT_TRUE(within[i].defined()) << i;
    EXPECT_TRUE(at::equal(within[i], behind[i])) << i;
  }
}

TEST(Components, BuiltByName) {
  const auto build = [](const Registry& registry, const OptionMap& options) {
    return std::dynamic_pointer_cast<TensorLayer>(registry.build(options));
  };
  for (const std::string name : {"MLP", "FusedMLP", "Conv2DFeedforward", "MixtureOfExperts"}) {
    const auto layer = build(feedforward_registry(), {{"name", name},
                                                      {"dim_model", 8},
                                                      {"dropout", 0.0},
                                                      {"activation", "relu"},
                                                      {"hidden_layer_multiplier", 2},
                                                      {"number_of_experts", 2},
                                                      {"gate", "round_robin"}});
    ASSERT_TRUE(layer) << name;
    EXPECT_EQ(layer->forward(at::ones({2, 4, 8})).sizes(), (std::vector<int64_t>{2, 4, 8})) << name;
  }
  for (const std::string name : {"sine", "vocab", "learnable"}) {
    EXPECT_TRUE(
        build(positional_embedding_registry(), {{"name", name}, {"dim_model", 8}, {"seq_len", 4}, {"vocab_size", 5}}))
        << name;
  }
}

TEST(Components, Initialisation) {
  const auto std_of = [](const char* kind, const char* name, WeightInit scheme, double gain, bool deepnorm) {
    at::manual_seed(1);
    const at::Tensor weight = at::full({300, 500}, NAN), bias = at::full({300}, NAN);
    EXPECT_EQ(init_weights_({{kind, name, weight, bias}}, scheme, gain, deepnorm), std::vector<bool>{true});
    EXPECT_TRUE(bias.abs().max().item<double>() < 1e-5);
    return weight.std().item<double>();
  };
  const double xavier = std::sqrt(2.0 / 800);
  EXPECT_NEAR(std_of("linear", "a.wrap_ff.mlp.0", WeightInit::kViT, 2, false), 2 * xavier, 0.01 * xavier);
  EXPECT_NEAR(std_of("linear", "a.q_proj", WeightInit::kMoco, 0.5, true), xavier, 0.01 * xavier);
  EXPECT_NEAR(std_of("linear", "a.v_proj", WeightInit::kMoco, 0.5, true), 0.5 * xavier, 0.01 * xavier);
  EXPECT_NEAR(std_of("linear", "a.proj", WeightInit::kSmall, 1, false), std::sqrt(2.0 / (500 + 1200)), 1e-4);
  EXPECT_EQ(init_weights_({{"conv2d", "a", at::ones({2, 3, 1, 1}), {}}}, WeightInit::kTimm, 1, false),
            std::vector<bool>{false});
  EXPECT_THROW(to_weight_init("xavier"), Error);
}

}  // namespace
}  // namespace xformers::nn
