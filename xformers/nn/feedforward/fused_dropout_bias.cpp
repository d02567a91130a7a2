#include "xformers/nn/feedforward/fused_dropout_bias.h"

#include <ATen/ops/zeros.h>

#include "xformers/kernels/base/check.h"
#include "xformers/nn/optional.h"
#include "xformers/ops/bias_act_dropout/bias_act_dropout.h"

namespace xformers::nn {

FusedDropoutBiasImpl::FusedDropoutBiasImpl(const FusedDropoutBiasOptions& options_arg) : options(options_arg) {
  if (!(options.p >= 0 && options.p < 1)) {
    fail({.where = "FusedDropoutBias",
          .name = "p",
          .got = std::to_string(options.p),
          .expected = "a probability in [0, 1)",
          .fix = "pass a fraction"});
  }
  FusedDropoutBiasImpl::reset();
}

void FusedDropoutBiasImpl::reset() {
  bias = register_parameter("bias", options.width > 0 ? at::zeros({options.width}) : at::Tensor(), options.width > 0);
}

at::Tensor FusedDropoutBiasImpl::forward(const at::Tensor& x) {
  return ops::fused_dropout(x, is_training() ? options.p : 0, to_optional(bias), options.activation);
}

}  // namespace xformers::nn
