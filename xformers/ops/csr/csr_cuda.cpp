// The operators of compressed sparse rows on CUDA tensors: on the current stream of the tensors' device, without
// waiting for it, so without looking at patterns either. In the checked mode they are copied to the host and checked
// first.
#include "xformers/kernels/cuda/csr/csr_cuda.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/sort.h>

#include "xformers/kernels/params/csr_check.h"
#include "xformers/ops/common/cuda_call.h"
#include "xformers/ops/csr/csr_run.h"

namespace xformers::ops {
namespace {

struct CudaCsr {
  static void refuse(const std::string& objection) {
    if (!objection.empty()) throw Error(objection);
  }
  static void check_offsets(const char* where, const LoweredPattern& pattern) {
    if (!checks_indices()) return;
    const LoweredPattern host(pattern.row_offsets.cpu(), pattern.column_indices.cpu());
    refuse(offsets_objection(where, host.params(0)));
  }
  static void check_pattern(const char* where, const LoweredPattern& pattern, int64_t columns) {
    if (!checks_indices()) return;
    const LoweredPattern host(pattern.row_offsets.cpu(), pattern.column_indices.cpu());
    refuse(pattern_objection(where, host.params(columns)));
  }
  static void check_places(const char* where, const at::Tensor& places) {
    if (!checks_indices()) return;
    const at::Tensor host = places.cpu();
    refuse(list_objection(where, "perm", host.const_data_ptr<int32_t>(), host.size(0), host.size(0),
                          "they number the values"));
  }

  static void sddmm(const at::Tensor& a, const CsrSddmmParams& params) {
    CudaCall call(a.device());
    cuda::csr_sddmm(params, call.stream());
  }
  static void spmm(const at::Tensor& b, const CsrSpmmParams& params) {
    CudaCall call(b.device());
    cuda::csr_spmm(params, call.stream());
  }
  static void softmax(const at::Tensor& values, const CsrSoftmaxFwdParams& params) {
    CudaCall call(values.device());
    cuda::csr_softmax_forward(params, call.stream());
  }
  static void softmax_backward(const at::Tensor& out, const CsrSoftmaxBwdParams& params) {
    CudaCall call(out.device());
    cuda::csr_softmax_backward(params, call.stream());
  }
};

// A stable sort by columns.
CsrTranspose::Result csr_transpose_cuda(const CsrTranspose& args) {
  args.check();
  const LoweredPattern pattern(args.row_offsets, args.column_indices);
  const int64_t columns = args.n.expect_int();
  CudaCsr::check_pattern("csr_transpose", pattern, columns);
  const auto [sorted, order] = pattern.column_indices.sort(/*stable=*/true, /*dim=*/0, /*descending=*/false);
  const at::Tensor perm = order.to(at::kInt);
  const at::Tensor starts = at::arange(columns + 1, perm.options());
  return {at::searchsorted(sorted, starts, /*out_int32=*/true),
          at::searchsorted(pattern.row_offsets, perm, /*out_int32=*/true, /*right=*/true) - 1, perm};
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, CUDA, m) {
  using namespace xformers::ops;
  implement_csr<CudaCsr>(m);
  implement<csr_transpose_cuda>(m);
}
