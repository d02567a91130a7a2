// Softmax on CUDA tensors: on the current stream of the tensors' device, without waiting for it.
#include "xformers/kernels/cuda/softmax/softmax_cuda.h"

#include <torch/library.h>

#include "xformers/ops/common/cuda_call.h"
#include "xformers/ops/softmax/softmax_op.h"

namespace xformers::ops {
namespace {

template <bool kLog>
at::Tensor forward_cuda(const at::Tensor& x, const OptionalTensor& mask, bool causal) {
  CudaCall call(x.device());
  const SoftmaxForwardCall prepared = prepare_softmax(x, mask, causal, kLog);
  cuda::softmax_forward(prepared.params, call.stream());
  return prepared.result;
}

at::Tensor backward_cuda(const at::Tensor& grad_out, const at::Tensor& out, bool causal, bool log) {
  CudaCall call(out.device());
  const SoftmaxBackwardCall prepared = prepare_softmax_backward(grad_out, out, causal, log);
  cuda::softmax_backward(prepared.params, call.stream());
  return prepared.result;
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, CUDA, m) {
  m.impl("softmax", xformers::ops::forward_cuda<false>);
  m.impl("log_softmax", xformers::ops::forward_cuda<true>);
  m.impl("softmax_backward", xformers::ops::backward_cuda);
}
