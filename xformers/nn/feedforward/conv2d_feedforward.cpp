#include "xformers/nn/feedforward/conv2d_feedforward.h"

#include <torch/nn/modules/conv.h>

#include <cmath>

#include "xformers/nn/functional/conv_feedforward.h"
#include "xformers/nn/optional.h"
#include "xformers/ops/bias_act_dropout/bias_act_dropout_op.h"

namespace xformers::nn {

Conv2DFeedforwardImpl::Conv2DFeedforwardImpl(const Conv2DFeedforwardOptions& options_arg) : options(options_arg) {
  ops::to_activation("Conv2DFeedforward", options.activation);
  Conv2DFeedforwardImpl::reset();
}

void Conv2DFeedforwardImpl::reset() {
  const int64_t dim = options.dim_model, hidden = options.hidden_layer_multiplier * dim;
  const auto convolution = [&](int64_t in, int64_t out, int64_t size, int64_t groups) {
    return torch::nn::Conv2d(
        torch::nn::Conv2dOptions(in, out, size).padding(size / 2).groups(groups).bias(options.bias));
  };
  torch::nn::Sequential layers;
  layers->push_back("0", convolution(dim, hidden, 1, 1));
  layers->push_back("1", convolution(hidden, hidden, 3, hidden));
  layers->push_back("3", convolution(hidden, options.dim_model_out.value_or(dim), 1, 1));
  conv_mlp = register_module("conv_mlp", layers);
}

at::Tensor Conv2DFeedforwardImpl::forward(const at::Tensor& x) {
  const auto at = [&](size_t i) -> torch::nn::Conv2dImpl& { return conv_mlp->at<torch::nn::Conv2dImpl>(i); };
  return conv2d_feedforward(x,
                            {at(0).weight, to_optional(at(0).bias), at(1).weight, to_optional(at(1).bias), at(2).weight,
                             to_optional(at(2).bias)},
                            ops::to_activation("Conv2DFeedforward", options.activation),
                            is_training() ? options.dropout : 0);
}

bool Conv2DFeedforwardImpl::init_weights(double /*gain*/) {
  const at::NoGradGuard no_grad;
  for (size_t i = 0; i < 3; ++i) {
    auto& convolution = conv_mlp->at<torch::nn::Conv2dImpl>(i);
    const int64_t fan_out =
        convolution.weight.size(0) * convolution.weight[0][0].numel() / convolution.options.groups();
    convolution.weight.normal_(0, std::sqrt(2.0 / static_cast<double>(fan_out)));
    if (convolution.bias.defined()) convolution.bias.zero_();
  }
  return true;
}

}  // namespace xformers::nn
