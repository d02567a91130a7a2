// The fused layer on CUDA tensors: on the current stream of the tensors' device, without waiting for it.
#include "xformers/kernels/cuda/bias_act_dropout/bias_act_dropout_cuda.h"

#include <torch/library.h>

#include "xformers/ops/bias_act_dropout/bias_act_dropout_op.h"
#include "xformers/ops/common/cuda_call.h"

namespace xformers::ops {
namespace {

at::Tensor forward_cuda(const BiasActDropoutArgs& args) {
  CudaCall call(args.x.device());
  const BiasActDropoutForwardCall prepared = prepare_bias_act_dropout(args, BiasTypes::kAlso16Bit);
  cuda::bias_act_dropout_forward(prepared.params, call.stream());
  return prepared.out;
}

std::tuple<at::Tensor, at::Tensor> backward_cuda(const BiasActDropoutBackwardArgs& args) {
  CudaCall call(args.grad_out.device());
  const BiasActDropoutBackwardCall prepared = prepare_bias_act_dropout_backward(args, BiasTypes::kAlso16Bit);
  cuda::bias_act_dropout_backward(prepared.params,
                                  call.stream(cuda::bias_act_dropout_backward_workspace(prepared.params)));
  return prepared.results();
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, CUDA, m) {
  using namespace xformers::ops;
  m.impl("bias_act_dropout", BiasActDropoutOp::entry<forward_cuda>);
  m.impl("bias_act_dropout_backward", BiasActDropoutBackwardOp::entry<backward_cuda>);
}
