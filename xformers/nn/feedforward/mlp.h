// The feed-forward layer of transformers: linear, activation, dropout, linear, dropout.
#pragma once

#include <torch/nn/modules/container/sequential.h>

#include <string>

#include "xformers/nn/layer.h"
#include "xformers/nn/registry/option_map.h"

namespace xformers::nn {

struct MLPOptions {
  int64_t dim_model = 0;
  double dropout = 0;
  std::string activation = "none";  // a name of ops/bias_act_dropout; gelu is the exact one
  int64_t hidden_layer_multiplier = 4;
  bool bias = true;

  static constexpr auto fields() {
    using O = MLPOptions;
    return std::tuple{field("dim_model", &O::dim_model), field("dropout", &O::dropout),
                      field("activation", &O::activation),
                      field("hidden_layer_multiplier", &O::hidden_layer_multiplier), field("bias", &O::bias)};
  }
};

// Parameters mlp.0 and mlp.3, as in Python.
class MLPImpl : public torch::nn::Cloneable<MLPImpl>, public TensorLayer {
 public:
  explicit MLPImpl(const MLPOptions& options);
  void reset() override;

  at::Tensor forward(const at::Tensor& x) override;  // [..., dim_model]

  MLPOptions options;
  torch::nn::Sequential mlp{nullptr};
};
TORCH_MODULE(MLP);

}  // namespace xformers::nn
