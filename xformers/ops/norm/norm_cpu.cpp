// The normalisations on CPU tensors.
#include "xformers/kernels/cpu/norm/norm_cpu.h"

#include "xformers/ops/common/threads.h"
#include "xformers/ops/norm/norm_run.h"

namespace xformers::ops {
namespace {

struct CpuNorms {
  static at::ScalarType weight_dtype(const at::Tensor& x, at::ScalarType /*dtype*/) { return compute_dtype(x); }
  static void forward(const at::Tensor& /*x*/, const NormFwdParams& params) {
    cpu::norm_forward(params, torch_threads());
  }
  static void backward(const at::Tensor& /*x*/, const NormBwdParams& params) {
    cpu::norm_backward(params, torch_threads());
  }
};

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, CPU, m) { xformers::ops::implement_norms<xformers::ops::CpuNorms>(m); }
