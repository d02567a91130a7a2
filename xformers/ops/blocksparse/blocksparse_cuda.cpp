// The block-sparse operators on CUDA tensors: on the current stream of the tensors' device, without waiting for it, so
// without looking at layouts either. In the checked mode they are copied to the host and checked first.
#include "xformers/kernels/cuda/blocksparse/blocksparse_cuda.h"

#include "xformers/kernels/params/csr_check.h"
#include "xformers/ops/blocksparse/blocksparse_run.h"
#include "xformers/ops/common/cuda_call.h"

namespace xformers::ops {
namespace {

struct CudaBlockSparse {
  static void check_layout(const char* where, const LoweredLayout& layout, int64_t block_columns) {
    if (!checks_indices()) return;
    const at::Tensor offsets = layout.row_offsets.cpu(), columns = layout.column_indices.cpu();
    const int64_t nnz = columns.size(0);
    std::string text = pattern_objection(where, {.rows = offsets.size(0) - 1,
                                                 .columns = block_columns,
                                                 .nnz = nnz,
                                                 .row_offsets = offsets.const_data_ptr<int32_t>(),
                                                 .column_indices = columns.const_data_ptr<int32_t>()});
    if (text.empty() && layout.perm.defined()) {
      const at::Tensor perm = layout.perm.cpu();
      text = list_objection(where, "perm", perm.const_data_ptr<int32_t>(), nnz, nnz, "they number the blocks");
    }
    if (!text.empty()) throw Error(text);
  }

  static void sdd(const at::Tensor& a, const BlockSddParams& params) {
    CudaCall call(a.device());
    cuda::block_sdd(params, call.stream());
  }
  static void dsd(const at::Tensor& b, const BlockDsdParams& params) {
    CudaCall call(b.device());
    cuda::block_dsd(params, call.stream());
  }
  static void softmax(const at::Tensor& values, const BlockSoftmaxFwdParams& params) {
    CudaCall call(values.device());
    cuda::block_softmax_forward(params, call.stream());
  }
  static void softmax_backward(const at::Tensor& out, const BlockSoftmaxBwdParams& params) {
    CudaCall call(out.device());
    cuda::block_softmax_backward(params, call.stream());
  }
};

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, CUDA, m) { xformers::ops::implement_blocksparse<xformers::ops::CudaBlockSparse>(m); }
