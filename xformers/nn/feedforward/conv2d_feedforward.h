// The feed-forward layer of convolutional mixers (functional/conv_feedforward.h) with its parameters.
#pragma once

#include <torch/nn/modules/container/sequential.h>

#include <string>

#include "xformers/nn/layer.h"
#include "xformers/nn/registry/option_map.h"

namespace xformers::nn {

struct Conv2DFeedforwardOptions {
  int64_t dim_model = 0, hidden_layer_multiplier = 1;
  std::optional<int64_t> dim_model_out{};  // dim_model
  std::string activation = "gelu";
  double dropout = 0;
  bool bias = true;

  static constexpr auto fields() {
    using O = Conv2DFeedforwardOptions;
    return std::tuple{field("dim_model", &O::dim_model),
                      field("hidden_layer_multiplier", &O::hidden_layer_multiplier),
                      field("dim_model_out", &O::dim_model_out),
                      field("activation", &O::activation),
                      field("dropout", &O::dropout),
                      field("bias", &O::bias)};
  }
};

// Parameters conv_mlp.0, .1 and .3, as in Python.
class Conv2DFeedforwardImpl : public torch::nn::Cloneable<Conv2DFeedforwardImpl>, public TensorLayer {
 public:
  explicit Conv2DFeedforwardImpl(const Conv2DFeedforwardOptions& options);
  void reset() override;

  at::Tensor forward(const at::Tensor& x) override;  // [batch, side^2, dim_model]
  bool requires_squared_context() const override { return true; }
  bool init_weights(double gain) override;  // N(0, sqrt(2 / fan_out)), biases 0

  Conv2DFeedforwardOptions options;
  torch::nn::Sequential conv_mlp{nullptr};
};
TORCH_MODULE(Conv2DFeedforward);

}  // namespace xformers::nn
