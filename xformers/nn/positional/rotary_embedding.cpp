#include "xformers/nn/positional/rotary_embedding.h"

namespace xformers::nn {

RotaryEmbeddingImpl::RotaryEmbeddingImpl(int64_t dim_model_arg, double theta_arg, ops::RotaryScaling scaling_arg)
    : dim_model(dim_model_arg), theta(theta_arg), scaling(std::move(scaling_arg)) {
  RotaryEmbeddingImpl::reset();
}

void RotaryEmbeddingImpl::reset() {
  inv_freq = register_buffer("inv_freq", ops::rotary_frequencies(dim_model, theta, scaling).to(at::kFloat));
}

std::pair<at::Tensor, at::Tensor> RotaryEmbeddingImpl::forward(const at::Tensor& q, const at::Tensor& k) {
  return {ops::rotary_embedding(q, theta, scaling), ops::rotary_embedding(k, theta, scaling)};
}

}  // namespace xformers::nn
