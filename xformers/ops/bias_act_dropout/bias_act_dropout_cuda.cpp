// The fused layer on CUDA tensors: on the current stream of the tensors' device, without waiting for it.
#include "xformers/kernels/cuda/bias_act_dropout/bias_act_dropout_cuda.h"

#include "xformers/ops/bias_act_dropout/bias_act_dropout_run.h"
#include "xformers/ops/common/cuda_call.h"

namespace xformers::ops {
namespace {

struct CudaFused {
  static at::ScalarType bias_dtype(const at::Tensor& x, at::ScalarType dtype) { return dtype_beside(x, dtype); }
  static void forward(const at::Tensor& x, const BiasActDropoutFwdParams& params) {
    CudaCall call(x.device());
    cuda::bias_act_dropout_forward(params, call.stream());
  }
  static void backward(const at::Tensor& x, const BiasActDropoutBwdParams& params) {
    CudaCall call(x.device());
    cuda::bias_act_dropout_backward(params, call.stream(cuda::bias_act_dropout_backward_workspace(params)));
  }
};

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, CUDA, m) { xformers::ops::implement_bias_act_dropout<xformers::ops::CudaFused>(m); }
