// The block-sparse operators on CPU tensors; a device without kernels is refused.
#include "xformers/kernels/cpu/blocksparse/blocksparse_cpu.h"

#include "xformers/ops/blocksparse/blocksparse_run.h"
#include "xformers/ops/common/cpu_only.h"
#include "xformers/ops/common/threads.h"

namespace xformers::ops {
namespace {

struct CpuBlockSparse {
  // The kernels look at layouts themselves.
  static void check_layout(const char* /*where*/, const LoweredLayout& /*layout*/, int64_t /*block_columns*/) {}

  static void sdd(const at::Tensor& /*a*/, const BlockSddParams& params) { cpu::block_sdd(params, torch_threads()); }
  static void dsd(const at::Tensor& /*b*/, const BlockDsdParams& params) { cpu::block_dsd(params, torch_threads()); }
  static void softmax(const at::Tensor& /*values*/, const BlockSoftmaxFwdParams& params) {
    cpu::block_softmax_forward(params, torch_threads());
  }
  static void softmax_backward(const at::Tensor& /*out*/, const BlockSoftmaxBwdParams& params) {
    cpu::block_softmax_backward(params, torch_threads());
  }
};

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, CPU, m) { xformers::ops::implement_blocksparse<xformers::ops::CpuBlockSparse>(m); }

TORCH_LIBRARY_IMPL(xformers, CompositeExplicitAutograd, m) {
  using namespace xformers::ops;
  refuse_other_devices(m, {BlockSdd::kName, BlockDsd::kName, BlockSoftmax::kName, BlockSoftmaxBackward::kName});
}
