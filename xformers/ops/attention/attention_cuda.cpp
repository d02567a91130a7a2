// The attention operators on CUDA tensors: on the current stream of the tensors' device, without waiting for it.
#include "xformers/kernels/cuda/attention/attention_cuda.h"

#include <ATen/Context.h>
#include <torch/library.h>

#include "xformers/ops/attention/attention_params.h"
#include "xformers/ops/common/cuda_call.h"

namespace xformers::ops {
namespace {

std::tuple<at::Tensor, at::Tensor> forward_cuda(const AttentionArgs& args) {
  CudaCall call(args.query.device());
  return run_forward(args, [&](const AttentionFwdParams& params) {
    cuda::attention_forward(params, call.stream(cuda::forward_workspace(params)));
  });
}

AttentionGradients backward_cuda(const AttentionGradArgs& args) {
  CudaCall call(args.query.device());
  return run_backward(args, [&](const AttentionBwdParams& given) {
    AttentionBwdParams params = given;
    params.deterministic = at::globalContext().deterministicAlgorithms();
    cuda::attention_backward(params, call.stream(cuda::backward_workspace(params)));
  });
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, CUDA, m) {
  using namespace xformers::ops;
  m.impl("attention_forward", AttentionForward::entry<forward_cuda>);
  m.impl("attention_backward", AttentionBackward::entry<backward_cuda>);
}
