// The gated feed-forward layer with its parameters, w1 and w2 packed.
#pragma once

#include <torch/nn/cloneable.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/pimpl.h>

namespace xformers::nn {

struct SwiGLUOptions {
  int64_t in_features = 0, hidden_features = 0;
  int64_t out_features = 0;  // 0: in_features
  bool bias = true;
};

class SwiGLUImpl : public torch::nn::Cloneable<SwiGLUImpl> {
 public:
  explicit SwiGLUImpl(const SwiGLUOptions& options);
  void reset() override;

  at::Tensor forward(const at::Tensor& x);

  SwiGLUOptions options;
  torch::nn::Linear w12{nullptr}, w3{nullptr};  // w12: the rows of w1, then those of w2
};
TORCH_MODULE(SwiGLU);

}  // namespace xformers::nn
