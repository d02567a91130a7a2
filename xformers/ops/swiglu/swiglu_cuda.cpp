// The gates on CUDA tensors: on the current stream of the tensors' device, without waiting for it.
#include "xformers/kernels/cuda/swiglu/gate_cuda.h"
#include "xformers/ops/common/cuda_call.h"
#include "xformers/ops/swiglu/swiglu_run.h"

namespace xformers::ops {
namespace {

struct CudaGates {
  static void forward(const at::Tensor& x1, const GateFwdParams& params) {
    CudaCall call(x1.device());
    cuda::gate_forward(params, call.stream());
  }
  static void backward(const at::Tensor& x1, const GateBwdParams& params) {
    CudaCall call(x1.device());
    cuda::gate_backward(params, /*sums=*/nullptr, call.stream());
  }
  static void backward_and_sums(const GateBwdParams& params, const at::Tensor& dx1dx2, at::Tensor sums) {
    CudaCall call(dx1dx2.device());
    cuda::gate_backward(params, sums.defined() ? sums.mutable_data_ptr() : nullptr,
                        call.stream(cuda::gate_backward_workspace(params, sums.defined())));
  }
};

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, CUDA, m) { xformers::ops::implement_gates<xformers::ops::CudaGates>(m); }
