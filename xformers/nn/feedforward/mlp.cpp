#include "xformers/nn/feedforward/mlp.h"

#include <torch/nn/modules/linear.h>

#include "xformers/nn/optional.h"
#include "xformers/ops/bias_act_dropout/bias_act_dropout_op.h"
#include "xformers/ops/bias_act_dropout/mlp.h"

namespace xformers::nn {
namespace {

Activation exact_activation(const std::string& name) {
  const Activation activation = ops::to_activation("MLP", name);
  return activation == Activation::kGelu ? Activation::kGeluExact : activation;
}

}  // namespace

MLPImpl::MLPImpl(const MLPOptions& options_arg) : options(options_arg) {
  exact_activation(options.activation);
  MLPImpl::reset();
}

void MLPImpl::reset() {
  const int64_t dim = options.dim_model, hidden = options.hidden_layer_multiplier * dim;
  const auto linear = [&](int64_t in, int64_t out) {
    return torch::nn::Linear(torch::nn::LinearOptions(in, out).bias(options.bias));
  };
  torch::nn::Sequential layers;
  layers->push_back("0", linear(dim, hidden));
  layers->push_back("3", linear(hidden, dim));
  mlp = register_module("mlp", layers);
}

at::Tensor MLPImpl::forward(const at::Tensor& x) {
  const auto& first = mlp->at<torch::nn::LinearImpl>(0);
  const auto& last = mlp->at<torch::nn::LinearImpl>(1);
  return ops::mlp(x, first.weight, to_optional(first.bias), last.weight, to_optional(last.bias),
                  exact_activation(options.activation), is_training() ? options.dropout : 0);
}

}  // namespace xformers::nn
