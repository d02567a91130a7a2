#include "xformers/nn/feedforward/swiglu.h"

#include "xformers/nn/optional.h"
#include "xformers/ops/swiglu/swiglu.h"

namespace xformers::nn {

SwiGLUImpl::SwiGLUImpl(const SwiGLUOptions& options_arg) : options(options_arg) {
  if (options.out_features == 0) options.out_features = options.in_features;
  SwiGLUImpl::reset();
}

void SwiGLUImpl::reset() {
  const auto linear = [&](int64_t in, int64_t out) {
    return torch::nn::Linear(torch::nn::LinearOptions(in, out).bias(options.bias));
  };
  w12 = register_module("w12", linear(options.in_features, 2 * options.hidden_features));
  w3 = register_module("w3", linear(options.hidden_features, options.out_features));
}

at::Tensor SwiGLUImpl::forward(const at::Tensor& x) {
  const at::Tensor w1w2 = w12->weight.view({2, options.hidden_features, options.in_features});
  const at::Tensor b1b2 = w12->bias.defined() ? w12->bias.view({2, options.hidden_features}) : at::Tensor();
  return ops::swiglu_packed(x, w1w2, to_optional(b1b2), w3->weight, to_optional(w3->bias));
}

}  // namespace xformers::nn
