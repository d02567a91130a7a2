// Softmax on CPU tensors.
#include "xformers/kernels/cpu/softmax/softmax_cpu.h"

#include "xformers/ops/common/threads.h"
#include "xformers/ops/softmax/softmax_run.h"

namespace xformers::ops {
namespace {

struct CpuSoftmax {
  static void forward(const at::Tensor& /*x*/, const SoftmaxFwdParams& params) {
    cpu::softmax_forward(params, torch_threads());
  }
  static void backward(const at::Tensor& /*x*/, const SoftmaxBwdParams& params) {
    cpu::softmax_backward(params, torch_threads());
  }
};

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, CPU, m) { xformers::ops::implement_softmax<xformers::ops::CpuSoftmax>(m); }
