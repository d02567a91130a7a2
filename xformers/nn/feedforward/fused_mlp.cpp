#include "xformers/nn/feedforward/fused_mlp.h"

#include <torch/nn/modules/linear.h>

#include "xformers/nn/feedforward/fused_dropout_bias.h"
#include "xformers/nn/optional.h"
#include "xformers/ops/bias_act_dropout/mlp.h"

namespace xformers::nn {

FusedMLPImpl::FusedMLPImpl(const FusedMLPOptions& options_arg) : options(options_arg) { FusedMLPImpl::reset(); }

void FusedMLPImpl::reset() {
  const int64_t dim = options.dim_model, hidden = options.hidden_layer_multiplier * dim;
  const auto linear = [](int64_t in, int64_t out) {
    return torch::nn::Linear(torch::nn::LinearOptions(in, out).bias(false));
  };
  const auto dropout = [&](int64_t width, Activation activation) {
    return FusedDropoutBias(
        FusedDropoutBiasOptions{.p = options.dropout, .width = options.bias ? width : 0, .activation = activation});
  };
  mlp = register_module("mlp", torch::nn::Sequential(linear(dim, hidden), dropout(hidden, options.activation),
                                                     linear(hidden, dim), dropout(dim, Activation::kNone)));
}

at::Tensor FusedMLPImpl::forward(const at::Tensor& x) {
  const auto &first = mlp->at<torch::nn::LinearImpl>(0), &last = mlp->at<torch::nn::LinearImpl>(2);
  const auto &active = mlp->at<FusedDropoutBiasImpl>(1), &dropped = mlp->at<FusedDropoutBiasImpl>(3);
  return ops::mlp(x, first.weight, to_optional(active.bias), last.weight, to_optional(dropped.bias),
                  active.options.activation, is_training() ? active.options.p : 0);
}

}  // namespace xformers::nn
