// The merge operators on CUDA tensors: on the current stream of their device, without waiting for it.
#include <torch/library.h>

#include "xformers/kernels/cuda/merge/merge_cuda.h"
#include "xformers/ops/attention/merge_attentions_params.h"
#include "xformers/ops/common/cuda_call.h"

namespace xformers::ops {
namespace {

std::tuple<at::Tensor, at::Tensor> forward_cuda(at::TensorList attn, at::TensorList lse, bool write_lse,
                                                std::optional<at::ScalarType> out_dtype) {
  return run_merge(attn, lse, write_lse, out_dtype, [&](const MergeFwdParams& params) {
    CudaCall call(attn[0].device());
    cuda::merge_forward(params, call.stream(cuda::merge_workspace(params)));
  });
}

MergeGradients backward_cuda(const at::Tensor& grad_out, const std::optional<at::Tensor>& grad_lse, at::TensorList attn,
                             at::TensorList lse) {
  return run_merge_backward(grad_out, grad_lse, attn, lse, [&](const MergeBwdParams& params) {
    CudaCall call(attn[0].device());
    cuda::merge_backward(params, call.stream(cuda::merge_workspace(params)));
  });
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, CUDA, m) {
  m.impl("merge_attentions", xformers::ops::forward_cuda);
  m.impl("merge_attentions_backward", xformers::ops::backward_cuda);
}
