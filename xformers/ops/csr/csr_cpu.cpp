// The operators of compressed sparse rows on CPU tensors; a device without kernels is refused.
#include "xformers/kernels/cpu/csr/csr_cpu.h"

#include "xformers/ops/common/cpu_only.h"
#include "xformers/ops/common/threads.h"
#include "xformers/ops/csr/csr_run.h"

namespace xformers::ops {
namespace {

// The kernels look at patterns themselves.
struct CpuCsr {
  static void check_offsets(const char* /*where*/, const LoweredPattern& /*pattern*/) {}
  static void check_pattern(const char* /*where*/, const LoweredPattern& /*pattern*/, int64_t /*columns*/) {}
  static void check_places(const char* /*where*/, const at::Tensor& /*places*/) {}

  static void sddmm(const at::Tensor& /*a*/, const CsrSddmmParams& params) { cpu::csr_sddmm(params, torch_threads()); }
  static void spmm(const at::Tensor& /*b*/, const CsrSpmmParams& params) { cpu::csr_spmm(params, torch_threads()); }
  static void softmax(const at::Tensor& /*values*/, const CsrSoftmaxFwdParams& params) {
    cpu::csr_softmax_forward(params, torch_threads());
  }
  static void softmax_backward(const at::Tensor& /*out*/, const CsrSoftmaxBwdParams& params) {
    cpu::csr_softmax_backward(params, torch_threads());
  }
};

CsrTranspose::Result csr_transpose_cpu(const CsrTranspose& args) {
  args.check();
  const LoweredPattern pattern(args.row_offsets, args.column_indices);
  CsrTranspose::Result result = args.empty();
  cpu::csr_transpose({.pattern = pattern.params(args.n.expect_int()),
                      .column_offsets = std::get<0>(result).mutable_data_ptr<int32_t>(),
                      .row_indices = std::get<1>(result).mutable_data_ptr<int32_t>(),
                      .places = std::get<2>(result).mutable_data_ptr<int32_t>()});
  return result;
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, CPU, m) {
  using namespace xformers::ops;
  implement_csr<CpuCsr>(m);
  implement<csr_transpose_cpu>(m);
}

TORCH_LIBRARY_IMPL(xformers, CompositeExplicitAutograd, m) {
  using namespace xformers::ops;
  refuse_other_devices(
      m, {CsrSddmm::kName, CsrSpmm::kName, CsrSoftmax::kName, CsrSoftmaxBackward::kName, CsrTranspose::kName});
}
