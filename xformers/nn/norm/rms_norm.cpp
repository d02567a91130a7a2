#include "xformers/nn/norm/rms_norm.h"

#include <ATen/ops/ones.h>

#include "xformers/nn/optional.h"
#include "xformers/ops/norm/norm.h"

namespace xformers::nn {

RMSNormImpl::RMSNormImpl(const RMSNormOptions& options_arg) : options(options_arg) { RMSNormImpl::reset(); }

void RMSNormImpl::reset() {
  weight = register_parameter("weight", options.include_weight ? at::ones({options.dim}) : at::Tensor(),
                              options.include_weight);
}

at::Tensor RMSNormImpl::forward(const at::Tensor& x) { return ops::rms_norm(x, to_optional(weight), options.eps); }

at::Tensor RMSNormImpl::increment_and_forward_(const at::Tensor& x, const at::Tensor& y) {
  return ops::rms_norm_add(x, y, to_optional(weight), options.eps);
}

}  // namespace xformers::nn
