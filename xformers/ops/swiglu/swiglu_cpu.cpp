// The gates on CPU tensors.
#include <ATen/ops/sum.h>

#include "xformers/kernels/cpu/swiglu/gate_cpu.h"
#include "xformers/ops/common/threads.h"
#include "xformers/ops/swiglu/swiglu_run.h"

namespace xformers::ops {
namespace {

struct CpuGates {
  static void forward(const at::Tensor& /*x1*/, const GateFwdParams& params) {
    cpu::gate_forward(params, torch_threads());
  }
  static void backward(const at::Tensor& /*x1*/, const GateBwdParams& params) {
    cpu::gate_backward(params, torch_threads());
  }
  static void backward_and_sums(const GateBwdParams& params, const at::Tensor& dx1dx2, at::Tensor sums) {
    cpu::gate_backward(params, torch_threads());
    if (sums.defined()) at::sum_out(sums, dx1dx2, {0});
  }
};

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, CPU, m) { xformers::ops::implement_gates<xformers::ops::CpuGates>(m); }
