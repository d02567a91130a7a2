// The fused layer on CPU tensors.
#include "xformers/kernels/cpu/bias_act_dropout/bias_act_dropout_cpu.h"

#include <torch/library.h>

#include "xformers/ops/bias_act_dropout/bias_act_dropout_op.h"
#include "xformers/ops/common/threads.h"

namespace xformers::ops {
namespace {

at::Tensor forward_cpu(const BiasActDropoutArgs& args) {
  const BiasActDropoutForwardCall call = prepare_bias_act_dropout(args, BiasTypes::kCompute);
  cpu::bias_act_dropout_forward(call.params, torch_threads());
  return call.out;
}

std::tuple<at::Tensor, at::Tensor> backward_cpu(const BiasActDropoutBackwardArgs& args) {
  const BiasActDropoutBackwardCall call = prepare_bias_act_dropout_backward(args, BiasTypes::kCompute);
  cpu::bias_act_dropout_backward(call.params, torch_threads());
  return call.results();
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, CPU, m) {
  m.impl("bias_act_dropout", xformers::ops::BiasActDropoutOp::entry<xformers::ops::forward_cpu>);
  m.impl("bias_act_dropout_backward", xformers::ops::BiasActDropoutBackwardOp::entry<xformers::ops::backward_cpu>);
}
