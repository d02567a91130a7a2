// Linear24 and MLP24 as C++ modules, against the dense layers of the weights and activations that are kept, and against
// examples that Python reads too (tests/python/test_sparse24.py).
#include "xformers/nn/feedforward/linear24.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/nn/modules/linear.h>
#include <torch/serialize.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "xformers/kernels/base/error.h"

namespace xformers::nn {
namespace {

// Which values the greedy rule keeps, tile by tile: from the largest down, where row and column have room.
at::Tensor kept(const at::Tensor& x) {
  at::Tensor mask = at::zeros_like(x);
  const auto value = x.accessor<float, 2>();
  auto keep = mask.accessor<float, 2>();
  for (int64_t top = 0; top < x.size(0); top += 4) {
    for (int64_t left = 0; left < x.size(1); left += 4) {
      std::vector<std::tuple<float, int64_t, int64_t>> ranked;
      for (int64_t i = top; i < std::min(top + 4, x.size(0)); ++i) {
        for (int64_t j = left; j < std::min(left + 4, x.size(1)); ++j) ranked.emplace_back(-value[i][j], i, j);
      }
      std::sort(ranked.begin(), ranked.end());
      std::array<int, 4> row{}, col{};
      for (const auto& [negative, i, j] : ranked) {
        if (row[i - top] == 2 || col[j - left] == 2) continue;
        keep[i][j] = 1, ++row[i - top], ++col[j - left];
      }
    }
  }
  return mask;
}

bool close(const at::Tensor& a, const at::Tensor& b) { return at::allclose(a, b, 1e-4, 1e-5); }

template <class Module>
std::vector<std::string> state_names(const Module& module) {
  std::vector<std::string> result;
  for (const auto& parameter : module->named_parameters()) result.push_back(parameter.key());
  for (const auto& buffer : module->named_buffers()) result.push_back(buffer.key());
  return result;
}
using Names = std::vector<std::string>;

TEST(Linear24, SparsifiesItsWeightInEveryForward) {
  at::manual_seed(0);
  Linear24 layer(Linear24Options{.in_features = 68, .out_features = 32});
  EXPECT_EQ(state_names(layer), (Names{"weight", "bias"}));
  const at::Tensor x = at::randn({3, 5, 68}).requires_grad_();
  const at::Tensor dense = at::linear(x, layer->weight * kept(layer->weight.detach()), layer->bias);
  const at::Tensor out = layer->forward(x);
  EXPECT_TRUE(close(out, dense));
  const std::vector<at::Tensor> inputs{x, layer->weight, layer->bias};
  const auto gradients = [&](const at::Tensor& y) { return torch::autograd::grad({y.sin().sum()}, inputs); };
  const auto got = gradients(out), expected = gradients(dense);
  for (size_t i = 0; i < inputs.size(); ++i) EXPECT_TRUE(at::allclose(got[i], expected[i], 1e-3, 1e-4)) << i;

  const at::NoGradGuard no_grad;
  layer->weight.neg_();
  EXPECT_TRUE(close(layer->forward(x), at::linear(x, layer->weight * kept(layer->weight), layer->bias)));
  EXPECT_EQ(state_names(Linear24(Linear24Options{8, 8, /*bias=*/false})), Names{"weight"});
}

TEST(Linear24, LoadsWhatLinearSaved) {
  torch::nn::Linear plain(12, 8);
  Linear24 layer(Linear24Options{.in_features = 12, .out_features = 8});
  std::stringstream file;
  torch::serialize::OutputArchive out;
  plain->save(out);
  out.save_to(file);
  torch::serialize::InputArchive in;
  in.load_from(file);
  layer->load(in);
  EXPECT_TRUE(at::equal(layer->weight, plain->weight) && at::equal(layer->bias, plain->bias));
}

TEST(Linear24, KeepsThePackedWeightAloneWhenFrozen) {
  Linear24 layer(Linear24Options{.in_features = 512, .out_features = 256, .algo = "largest_abs_values_greedy"});
  layer->to(at::kBFloat16);
  const int64_t dense_bytes = static_cast<int64_t>(layer->weight.nbytes());
  const at::NoGradGuard no_grad;
  const at::Tensor x = at::randn({2, 3, 512}, at::kBFloat16), before = layer->forward(x);
  EXPECT_FALSE(layer->frozen());
  layer->freeze();
  layer->freeze();  // once is enough
  EXPECT_TRUE(layer->frozen() && !layer->weight.defined());
  EXPECT_EQ(state_names(layer), (Names{"bias", "packed", "meta"}));
  EXPECT_LE(layer->packed.nbytes() + layer->meta.nbytes(), 0.57 * static_cast<double>(dense_bytes));
  EXPECT_TRUE(at::equal(layer->forward(x), before));
  EXPECT_EQ(layer->forward(x.select(0, 0).select(0, 0)).sizes(), at::IntArrayRef({256}));

  const auto twin = std::dynamic_pointer_cast<Linear24Impl>(layer->clone());
  EXPECT_TRUE(at::equal(twin->forward(x), before) && !twin->packed.is_same(layer->packed));
  layer->packed.zero_();
  EXPECT_TRUE(at::equal(twin->forward(x), before));
  EXPECT_THROW(layer->forward(x.narrow(-1, 0, 8)), Error);
}

TEST(Mlp24, KeepsHalfOfWeightsOrOfActivations) {
  at::manual_seed(0);
  for (const std::string sparsity : {"weights", "activations"}) {
    for (const std::string activation : {"relu", "squared_relu", "gelu", "gelu_exact"}) {
      SCOPED_TRACE(sparsity + " " + activation);
      MLP24 mlp(MLP24Options{.in_features = 16, .hidden_features = 64, .activation = activation, .sparsity = sparsity});
      EXPECT_EQ(state_names(mlp), (Names{"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"}));
      const at::NoGradGuard no_grad;
      const auto p = mlp->named_parameters();
      const at::Tensor x = at::randn({2, 6, 16});
      at::Tensor fc1 = p["fc1.weight"], fc2 = p["fc2.weight"];
      if (sparsity == "weights") fc1 = fc1 * kept(fc1), fc2 = fc2 * kept(fc2);
      at::Tensor hidden = at::linear(x, fc1, p["fc1.bias"]).flatten(0, 1);
      hidden = activation == "gelu"         ? at::gelu(hidden, "tanh")
               : activation == "gelu_exact" ? at::gelu(hidden)
               : activation == "relu"       ? at::relu(hidden)
                                            : at::relu(hidden).square();
      if (sparsity == "activations") hidden = hidden * kept(hidden);
      const at::Tensor expected = at::linear(hidden, fc2, p["fc2.bias"]).view({2, 6, 16}), out = mlp->forward(x);
      EXPECT_TRUE(close(out, expected));
      const auto twin = std::dynamic_pointer_cast<MLP24Impl>(mlp->clone());
      p["fc2.weight"].zero_();
      EXPECT_TRUE(at::equal(twin->forward(x), out));
    }
  }
}

// Numbers of a JSON array, [rows][columns] or [columns].
at::Tensor to_tensor(const nlohmann::json& json) {
  if (!json.at(0).is_array()) return at::tensor(json.get<std::vector<float>>());
  std::vector<at::Tensor> rows;
  for (const auto& row : json) rows.push_back(to_tensor(row));
  return at::stack(rows);
}

TEST(Linear24, BothLanguagesAgree) {
  std::ifstream file(XFORMERS_TEST_CASES "/linear24_examples.json");
  int examples = 0;
  for (const auto& row : nlohmann::json::parse(file)) {
    SCOPED_TRACE(row.at("options").dump());
    const auto& state = row.at("state");
    const at::Tensor x = to_tensor(row.at("x")), expected = to_tensor(row.at("out"));
    const at::NoGradGuard no_grad;
    const auto load = [&](torch::nn::Module& module) {
      for (auto& parameter : module.named_parameters()) parameter.value().copy_(to_tensor(state.at(parameter.key())));
    };
    if (row.at("module") == "Linear24") {
      Linear24 layer(
          Linear24Options{.in_features = 6, .out_features = 5, .algo = row["options"]["algo"].get<std::string>()});
      load(*layer);
      EXPECT_TRUE(close(layer->forward(x), expected));
    } else {
      MLP24 mlp(MLP24Options{.in_features = 6,
                             .hidden_features = 8,
                             .out_features = 3,
                             .sparsity = row["options"]["sparsity"].get<std::string>()});
      load(*mlp);
      EXPECT_TRUE(close(mlp->forward(x), expected));
    }
    ++examples;
  }
  EXPECT_EQ(examples, 4);
}

TEST(Linear24, RefusesUnknownNames) {
  EXPECT_THROW(Linear24(Linear24Options{.in_features = 4, .out_features = 4, .algo = "abs"}), c10::Error);
  EXPECT_THROW(Linear24(Linear24Options{.in_features = 4, .out_features = 4, .gradient = "dense"}), Error);
  EXPECT_THROW(Linear24(Linear24Options{.in_features = 4, .out_features = 4, .backend = "sputnik"}), c10::Error);
  EXPECT_THROW(MLP24(MLP24Options{.in_features = 4, .hidden_features = 4, .activation = "silu"}), c10::Error);
  EXPECT_THROW(MLP24(MLP24Options{.in_features = 4, .hidden_features = 4, .sparsity = "all"}), c10::Error);
}

}  // namespace
}  // namespace xformers::nn
