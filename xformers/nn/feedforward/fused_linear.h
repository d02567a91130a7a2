// A linear layer with its activation.
#pragma once

#include <torch/nn/cloneable.h>
#include <torch/nn/pimpl.h>

#include "xformers/kernels/params/bias_act_dropout.h"

namespace xformers::nn {

struct FusedLinearOptions {
  int64_t in_features = 0, out_features = 0;
  bool bias = false;
  Activation activation = Activation::kNone;
};

class FusedLinearImpl : public torch::nn::Cloneable<FusedLinearImpl> {
 public:
  explicit FusedLinearImpl(const FusedLinearOptions& options);
  void reset() override;  // parameters begin as those of torch::nn::Linear

  at::Tensor forward(const at::Tensor& x);  // activation(x weight^T + bias)

  FusedLinearOptions options;
  at::Tensor weight, bias;  // [out, in]; [out], or undefined
};
TORCH_MODULE(FusedLinear);

}  // namespace xformers::nn
