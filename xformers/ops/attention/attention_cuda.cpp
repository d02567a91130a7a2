// The attention operators on CUDA tensors: on the current stream of the tensors' device, without waiting for it.
#include "xformers/kernels/cuda/attention/attention_cuda.h"

#include <ATen/Context.h>

#include "xformers/ops/attention/attention_run.h"
#include "xformers/ops/common/cuda_call.h"

namespace xformers::ops {
namespace {

AttentionResult forward_cuda(AttentionArgs& args) {
  CudaCall call(args.query.device());
  return run_forward(args, [&](const AttentionFwdParams& params) {
    const auto choice = cuda::choose_forward(params);
    cuda::attention_forward(choice, params, call.stream(choice.workspace));
  });
}

void backward_kernel(const AttentionBwdParams& given, CudaCall& call) {
  AttentionBwdParams params = given;
  params.deterministic = at::globalContext().deterministicAlgorithms();
  const auto choice = cuda::choose_backward(params);
  cuda::attention_backward(choice, params, call.stream(choice.workspace));
}

AttentionGradients backward_cuda(const AttentionGradArgs& args) {
  CudaCall call(args.query.device());
  return run_backward(args, [&](const AttentionBwdParams& params) { backward_kernel(params, call); });
}

AttentionStackedGradients backward_stacked_cuda(const AttentionBackwardStacked& args) {
  CudaCall call(args.query.device());
  return run_backward_stacked(args, [&](const AttentionBwdParams& params) { backward_kernel(params, call); });
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, CUDA, m) {
  using namespace xformers::ops;
  implement<forward_cuda>(m);
  implement<backward_cuda>(m);
  implement<backward_stacked_cuda>(m);
}
