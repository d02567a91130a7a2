#include "xformers/nn/feedforward/fused_linear.h"

#include <ATen/ops/empty.h>
#include <torch/nn/init.h>

#include <cmath>

#include "xformers/nn/optional.h"
#include "xformers/ops/bias_act_dropout/bias_act_dropout.h"

namespace xformers::nn {

FusedLinearImpl::FusedLinearImpl(const FusedLinearOptions& options_arg) : options(options_arg) {
  FusedLinearImpl::reset();
}

void FusedLinearImpl::reset() {
  weight = register_parameter("weight", at::empty({options.out_features, options.in_features}));
  bias = register_parameter("bias", options.bias ? at::empty({options.out_features}) : at::Tensor(), options.bias);
  torch::nn::init::kaiming_uniform_(weight, std::sqrt(5.0));
  if (!bias.defined()) return;
  const double bound = options.in_features > 0 ? 1 / std::sqrt(static_cast<double>(options.in_features)) : 0;
  torch::nn::init::uniform_(bias, -bound, bound);
}

at::Tensor FusedLinearImpl::forward(const at::Tensor& x) {
  return ops::fused_linear(x, weight, to_optional(bias), options.activation);
}

}  // namespace xformers::nn
