// The merge operators on CUDA tensors: on the current stream of their device, without waiting for it.
#include "xformers/kernels/cuda/merge/merge_cuda.h"
#include "xformers/ops/common/cuda_call.h"
#include "xformers/ops/merge_attentions/merge_attentions_run.h"

namespace xformers::ops {
namespace {

struct CudaMerge {
  static void forward(const at::Tensor& attn, const MergeFwdParams& params) {
    CudaCall call(attn.device());
    cuda::merge_forward(params, call.stream(cuda::merge_workspace(params)));
  }
  static void backward(const at::Tensor& attn, const MergeBwdParams& params) {
    CudaCall call(attn.device());
    cuda::merge_backward(params, call.stream(cuda::merge_workspace(params)));
  }
};

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, CUDA, m) { xformers::ops::implement_merge<xformers::ops::CudaMerge>(m); }
