// Softmax on CUDA tensors: on the current stream of the tensors' device, without waiting for it.
#include "xformers/kernels/cuda/softmax/softmax_cuda.h"

#include "xformers/ops/common/cuda_call.h"
#include "xformers/ops/softmax/softmax_run.h"

namespace xformers::ops {
namespace {

struct CudaSoftmax {
  static void forward(const at::Tensor& x, const SoftmaxFwdParams& params) {
    CudaCall call(x.device());
    cuda::softmax_forward(params, call.stream());
  }
  static void backward(const at::Tensor& x, const SoftmaxBwdParams& params) {
    CudaCall call(x.device());
    cuda::softmax_backward(params, call.stream());
  }
};

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, CUDA, m) { xformers::ops::implement_softmax<xformers::ops::CudaSoftmax>(m); }
