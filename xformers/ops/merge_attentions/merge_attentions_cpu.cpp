// The merge operators on CPU tensors.
#include "xformers/kernels/cpu/merge/merge_cpu.h"
#include "xformers/ops/common/threads.h"
#include "xformers/ops/merge_attentions/merge_attentions_run.h"

namespace xformers::ops {
namespace {

struct CpuMerge {
  static void forward(const at::Tensor& /*attn*/, const MergeFwdParams& params) {
    cpu::merge_forward(params, torch_threads());
  }
  static void backward(const at::Tensor& /*attn*/, const MergeBwdParams& params) {
    cpu::merge_backward(params, torch_threads());
  }
};

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, CPU, m) { xformers::ops::implement_merge<xformers::ops::CpuMerge>(m); }
