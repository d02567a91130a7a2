// Rotary embeddings of queries and keys.
#pragma once

#include <torch/nn/cloneable.h>
#include <torch/nn/pimpl.h>

#include <utility>

#include "xformers/ops/rope/rope.h"

namespace xformers::nn {

class RotaryEmbeddingImpl : public torch::nn::Cloneable<RotaryEmbeddingImpl> {
 public:
  explicit RotaryEmbeddingImpl(int64_t dim_model, double theta = 10000, ops::RotaryScaling scaling = {});
  void reset() override;

  // q, k [..., seqlen, dim_model], turned by the positions 0 ... seqlen - 1, element i with i + dim_model / 2.
  std::pair<at::Tensor, at::Tensor> forward(const at::Tensor& q, const at::Tensor& k);

  int64_t dim_model;
  double theta;
  ops::RotaryScaling scaling;
  at::Tensor inv_freq;  // [dim_model / 2]: part of state dicts; the kernel computes its own angles, in fp64
};
TORCH_MODULE(RotaryEmbedding);

}  // namespace xformers::nn
