// The feed-forward layer: linear, bias + activation + dropout, linear, bias + dropout. One bias per layer.
#pragma once

#include <torch/nn/modules/container/sequential.h>

#include "xformers/kernels/params/bias_act_dropout.h"
#include "xformers/nn/layer.h"

namespace xformers::nn {

struct FusedMLPOptions {
  int64_t dim_model = 0;
  double dropout = 0;
  Activation activation = Activation::kNone;
  int64_t hidden_layer_multiplier = 4;
  bool bias = true;
};

class FusedMLPImpl : public torch::nn::Cloneable<FusedMLPImpl>, public TensorLayer {
 public:
  explicit FusedMLPImpl(const FusedMLPOptions& options);
  void reset() override;

  at::Tensor forward(const at::Tensor& x) override;  // [..., dim_model]

  FusedMLPOptions options;
  torch::nn::Sequential mlp{nullptr};
};
TORCH_MODULE(FusedMLP);

}  // namespace xformers::nn
