#include "xformers/nn/positional/rotary_embedding.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/pow.h>

#include "xformers/ops/rope/rope.h"

namespace xformers::nn {

RotaryEmbeddingImpl::RotaryEmbeddingImpl(int64_t dim_model_arg) : dim_model(dim_model_arg) {
  RotaryEmbeddingImpl::reset();
}

void RotaryEmbeddingImpl::reset() {
  const at::Tensor exponents = at::arange(0, dim_model, 2, at::kDouble) / static_cast<double>(dim_model);
  inv_freq = register_buffer("inv_freq", at::pow(10000.0, -exponents).to(at::kFloat));
}

std::pair<at::Tensor, at::Tensor> RotaryEmbeddingImpl::forward(const at::Tensor& q, const at::Tensor& k) {
  return {ops::rotary(q), ops::rotary(k)};
}

}  // namespace xformers::nn
