#include "xformers/nn/norm/layer_norm.h"

#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

#include "xformers/nn/optional.h"
#include "xformers/ops/norm/norm.h"

namespace xformers::nn {

FusedLayerNormImpl::FusedLayerNormImpl(const FusedLayerNormOptions& options_arg) : options(options_arg) {
  FusedLayerNormImpl::reset();
}

void FusedLayerNormImpl::reset() {
  weight = register_parameter("weight", options.affine ? at::ones({options.dim}) : at::Tensor(), options.affine);
  bias = register_parameter("bias", options.affine ? at::zeros({options.dim}) : at::Tensor(), options.affine);
}

at::Tensor FusedLayerNormImpl::forward(const at::Tensor& x) {
  return ops::fused_layer_norm(x, to_optional(weight), to_optional(bias), options.eps);
}

at::Tensor FusedLayerNormImpl::forward_sum(const at::Tensor& update, const at::Tensor& x, double scale) {
  return std::get<0>(
      ops::fused_layer_norm_of_sum(update, x, to_optional(weight), to_optional(bias), options.eps, scale));
}

}  // namespace xformers::nn
