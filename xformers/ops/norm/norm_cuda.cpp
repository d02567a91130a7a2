// The normalisations on CUDA tensors: on the current stream of the tensors' device, without waiting for it.
#include "xformers/kernels/cuda/norm/norm_cuda.h"

#include <ATen/ops/add.h>

#include "xformers/ops/common/cuda_call.h"
#include "xformers/ops/norm/norm_run.h"

namespace xformers::ops {
namespace {

struct CudaNorms {
  // Weights of x's own type are taken as they are: a conversion would be a kernel of its own.
  static at::ScalarType weight_dtype(const at::Tensor& x, at::ScalarType dtype) {
    return dtype == x.scalar_type() ? dtype : compute_dtype(x);
  }
  static void forward(const at::Tensor& x, const NormFwdParams& params) {
    CudaCall call(x.device());
    cuda::norm_forward(params, call.stream());
  }
  static void backward(const at::Tensor& x, const NormBwdParams& params) {
    CudaCall call(x.device());
    cuda::norm_backward(params, call.stream(cuda::norm_backward_workspace(params)));
  }
};

// In two passes.
LayerNormOfSum::Result layer_norm_of_sum_cuda(const LayerNormOfSum& args) {
  args.check();
  const at::Tensor sum = at::add(args.x, args.residual, args.scale).contiguous();
  return {run_layer_norm<CudaNorms>({sum, args.weight, args.bias, args.eps}), sum};
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, CUDA, m) {
  xformers::ops::implement_norms<xformers::ops::CudaNorms>(m);
  xformers::ops::implement<xformers::ops::layer_norm_of_sum_cuda>(m);
}
