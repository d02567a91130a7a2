// The gates on CUDA tensors: on the current stream of the tensors' device, without waiting for it.
#include <torch/library.h>

#include "xformers/kernels/cuda/swiglu/gate_cuda.h"
#include "xformers/ops/common/cuda_call.h"
#include "xformers/ops/swiglu/swiglu_run.h"

namespace xformers::ops {
namespace {

at::Tensor gate_cuda(const at::Tensor& x1, const at::Tensor& x2) {
  CudaCall call(x1.device());
  return run_gate(x1, x2, [&](const GateFwdParams& params) { cuda::gate_forward(params, call.stream()); });
}

std::tuple<at::Tensor, at::Tensor> gate_backward_cuda(const at::Tensor& x1, const at::Tensor& x2,
                                                      const at::Tensor& dx4) {
  CudaCall call(x1.device());
  return run_gate_backward(
      x1, x2, dx4, [&](const GateBwdParams& params) { cuda::gate_backward(params, /*sums=*/nullptr, call.stream()); });
}

std::tuple<at::Tensor, at::Tensor> gate_backward_apart_cuda(const at::Tensor& x1, const at::Tensor& x2,
                                                            const at::Tensor& dh) {
  CudaCall call(x1.device());
  return run_gate_backward_apart(
      x1, x2, dh, [&](const GateBwdParams& params) { cuda::gate_backward(params, /*sums=*/nullptr, call.stream()); });
}

at::Tensor gate_backward_out_cuda(const at::Tensor& x1, const at::Tensor& x2, const at::Tensor& dh,
                                  const at::Tensor& dx1dx2, bool need_h, bool need_sums) {
  check_gate_backward_out(x1, x2, dh, dx1dx2);
  CudaCall call(x1.device());
  at::Tensor sums = need_sums ? at::empty({2, x1.size(1)}, x1.options()) : at::empty({0}, x1.options());
  run_gate_backward(x1, x2, dh, dx1dx2.select(1, 0), dx1dx2.select(1, 1), need_h ? dh : at::Tensor(),
                    [&](const GateBwdParams& params) {
                      cuda::gate_backward(params, need_sums ? sums.mutable_data_ptr() : nullptr,
                                          call.stream(cuda::gate_backward_workspace(params, need_sums)));
                    });
  return sums;
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, CUDA, m) {
  m.impl("silu_gate", xformers::ops::gate_cuda);
  m.impl("silu_bw_fused", xformers::ops::gate_backward_cuda);
  m.impl("silu_gate_backward", xformers::ops::gate_backward_apart_cuda);
  m.impl("silu_gate_backward_out", xformers::ops::gate_backward_out_cuda);
}
