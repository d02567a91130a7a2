// The C++ example of the page of docs/ops about models from a config.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

// [example]
#include "xformers/nn/factory/xformer.h"
#include "xformers/nn/state_dict.h"

at::Tensor encode(const std::string& json, const xformers::nn::StateDict& weights, const at::Tensor& ids) {
  xformers::nn::xFormer model = xformers::nn::xFormer::from_json(json);
  xformers::nn::load_state_dict(*model, weights);
  model->eval();
  return model->forward(ids);
}
// [example]

namespace xformers::nn {
namespace {

constexpr const char* kModel = R"({"stack_configs": [{
  "block_type": "encoder", "dim_model": 8, "num_layers": 2, "residual_norm_style": "pre",
  "position_encoding_config": {"name": "vocab", "seq_len": 4, "vocab_size": 10, "dropout": 0.1},
  "multi_head_config": {"num_heads": 2, "attention": {"name": "scaled_dot_product", "dropout": 0.1}},
  "feedforward_config": {"name": "MLP", "dropout": 0.1, "activation": "relu", "hidden_layer_multiplier": 2}}]})";

TEST(Examples, Factory) {
  xFormer model = xFormer::from_json(kModel);
  const at::Tensor ids = at::randint(10, {2, 4}, at::kLong);
  const at::Tensor out = encode(kModel, state_dict(*model), ids);
  model->eval();
  EXPECT_TRUE(at::equal(model->forward(ids), out));
  EXPECT_EQ(out.sizes(), (std::vector<int64_t>{2, 4, 8}));
  StateDict wrong = state_dict(*model);
  wrong["encoders.7.x"] = at::ones({1});
  EXPECT_THROW(encode(kModel, wrong, ids), Error);
}

// A training step reaches every parameter.
TEST(Examples, FactoryTrains) {
  xFormer model = xFormer::from_json(kModel);
  const at::Tensor ids = at::randint(10, {2, 4}, at::kLong);
  (model->forward(ids) * at::randn({2, 4, 8})).sum().backward();
  for (const auto& parameter : model->named_parameters())
    EXPECT_TRUE(parameter.value().grad().defined()) << parameter.key();
}

}  // namespace
}  // namespace xformers::nn
