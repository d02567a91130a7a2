// ops::rms_norm with its weight.
#pragma once

#include <torch/nn/cloneable.h>
#include <torch/nn/pimpl.h>

namespace xformers::nn {

struct RMSNormOptions {
  int64_t dim = 0;
  bool include_weight = true;
  double eps = 1e-6;
};

class RMSNormImpl : public torch::nn::Cloneable<RMSNormImpl> {
 public:
  explicit RMSNormImpl(int64_t dim) : RMSNormImpl(RMSNormOptions{.dim = dim}) {}
  explicit RMSNormImpl(const RMSNormOptions& options);
  void reset() override;  // the weight begins as ones

  at::Tensor forward(const at::Tensor& x);
  // In place x += y; returns the norm of the new x.
  at::Tensor increment_and_forward_(const at::Tensor& x, const at::Tensor& y);

  RMSNormOptions options;
  at::Tensor weight;  // [dim], or undefined
};
TORCH_MODULE(RMSNorm);

}  // namespace xformers::nn
