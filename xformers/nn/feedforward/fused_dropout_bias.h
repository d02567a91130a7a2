// Bias, activation and dropout in one pass.
#pragma once

#include <torch/nn/cloneable.h>
#include <torch/nn/pimpl.h>

#include "xformers/kernels/params/bias_act_dropout.h"

namespace xformers::nn {

struct FusedDropoutBiasOptions {
  double p = 0;       // in [0, 1)
  int64_t width = 0;  // of the bias; 0: no bias
  Activation activation = Activation::kNone;
};

class FusedDropoutBiasImpl : public torch::nn::Cloneable<FusedDropoutBiasImpl> {
 public:
  explicit FusedDropoutBiasImpl(const FusedDropoutBiasOptions& options);
  void reset() override;  // the bias begins as zeros

  // dropout(activation(x + bias)) in training, activation(x + bias) in evaluation.
  at::Tensor forward(const at::Tensor& x);

  FusedDropoutBiasOptions options;
  at::Tensor bias;  // [width], or undefined
};
TORCH_MODULE(FusedDropoutBias);

}  // namespace xformers::nn
