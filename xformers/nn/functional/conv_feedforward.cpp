#include "xformers/nn/functional/conv_feedforward.h"

#include <ATen/ops/conv2d.h>
#include <ATen/ops/linear.h>
#include <torch/library.h>

#include "xformers/nn/functional/embedding.h"
#include "xformers/ops/bias_act_dropout/bias_act_dropout.h"
#include "xformers/ops/bias_act_dropout/bias_act_dropout_op.h"
#include "xformers/ops/common/check.h"

namespace xformers::nn::functional {

at::Tensor conv2d_feedforward(const at::Tensor& x, const ConvFeedforwardWeights& weights, Activation activation,
                              double p) {
  const char* const where = "conv2d_feedforward";
  const ops::Check check(where);
  check.floating("x", x);
  check.dims("x", x, 3, "[batch, seqlen, dim]");
  grid_side(where, x);
  const at::Tensor hidden = at::linear(x, weights.in.flatten(1), weights.in_bias);
  const at::Tensor filters = weights.depth.transpose(2, 3);
  const at::Tensor mixed = grid_to_tokens(at::conv2d(tokens_to_grid(hidden), filters, {}, /*stride=*/1, /*padding=*/1,
                                                     /*dilation=*/1, /*groups=*/filters.size(0)));
  const at::Tensor active = ops::elementwise_dropout(mixed, 0, weights.depth_bias, activation);
  const at::Tensor out = at::linear(active, weights.out.flatten(1), p > 0 ? std::nullopt : weights.out_bias);
  return p > 0 ? ops::elementwise_dropout(out, p, weights.out_bias) : out;
}

namespace {

at::Tensor conv2d_feedforward_by_name(const at::Tensor& x, const at::Tensor& in, const ops::OptionalTensor& in_bias,
                                      const at::Tensor& depth, const ops::OptionalTensor& depth_bias,
                                      const at::Tensor& out, const ops::OptionalTensor& out_bias,
                                      ops::ActivationName activation, double p) {
  return conv2d_feedforward(x, {in, in_bias, depth, depth_bias, out, out_bias},
                            ops::to_activation("conv2d_feedforward", activation), p);
}

}  // namespace
}  // namespace xformers::nn::functional

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  m.def(
      "conv2d_feedforward(Tensor x, Tensor w_in, Tensor? b_in, Tensor w_depth, Tensor? b_depth, Tensor w_out, "
      "Tensor? b_out, str? activation=None, float p=0.0) -> Tensor",
      {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(xformers, CompositeImplicitAutograd, m) {
  m.impl("conv2d_feedforward", xformers::nn::functional::conv2d_feedforward_by_name);
}
TORCH_LIBRARY_IMPL(xformers, FuncTorchVmapMode, m) {
  m.impl("conv2d_feedforward", xformers::nn::functional::conv2d_feedforward_by_name);
}
