// The fused layer on CPU tensors.
#include "xformers/kernels/cpu/bias_act_dropout/bias_act_dropout_cpu.h"

#include "xformers/ops/bias_act_dropout/bias_act_dropout_run.h"
#include "xformers/ops/common/threads.h"

namespace xformers::ops {
namespace {

struct CpuFused {
  static at::ScalarType bias_dtype(const at::Tensor& x, at::ScalarType /*dtype*/) { return compute_dtype(x); }
  static void forward(const at::Tensor& /*x*/, const BiasActDropoutFwdParams& params) {
    cpu::bias_act_dropout_forward(params, torch_threads());
  }
  static void backward(const at::Tensor& /*x*/, const BiasActDropoutBwdParams& params) {
    cpu::bias_act_dropout_backward(params, torch_threads());
  }
};

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, CPU, m) { xformers::ops::implement_bias_act_dropout<xformers::ops::CpuFused>(m); }
