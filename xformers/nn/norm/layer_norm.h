// ops::fused_layer_norm with its weight and bias.
#pragma once

#include <torch/nn/cloneable.h>
#include <torch/nn/pimpl.h>

namespace xformers::nn {

struct FusedLayerNormOptions {
  int64_t dim = 0;
  bool affine = true;
  double eps = 1e-6;
};

class FusedLayerNormImpl : public torch::nn::Cloneable<FusedLayerNormImpl> {
 public:
  explicit FusedLayerNormImpl(int64_t dim) : FusedLayerNormImpl(FusedLayerNormOptions{.dim = dim}) {}
  explicit FusedLayerNormImpl(const FusedLayerNormOptions& options);
  void reset() override;  // ones and zeros

  at::Tensor forward(const at::Tensor& x);
  // Of update + scale * x: on the CPU in one pass with the sum.
  at::Tensor forward_sum(const at::Tensor& update, const at::Tensor& x, double scale);

  FusedLayerNormOptions options;
  at::Tensor weight, bias;  // [dim], or undefined
};
TORCH_MODULE(FusedLayerNorm);

}  // namespace xformers::nn
