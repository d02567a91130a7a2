// The indexing operators on CUDA tensors: on the current stream of the tensors' device, without waiting for it, so
// without looking at the indices either. In the checked mode they are copied to the host and checked first.
#include "xformers/kernels/cuda/indexing/indexing_cuda.h"

#include "xformers/kernels/params/index_check.h"
#include "xformers/ops/common/cuda_call.h"
#include "xformers/ops/indexing/indexing_run.h"

namespace xformers::ops {
namespace {

struct CudaIndexing {
  static void check_values(const char* where, const std::string& name, const at::Tensor& index, int64_t rows) {
    if (!checks_indices()) return;
    const at::Tensor host = index.cpu().contiguous();
    const std::string text = index_objection(where, name, host.const_data_ptr<int64_t>(), host.size(0), rows);
    TORCH_CHECK_INDEX(text.empty(), text);
  }
  static at::ScalarType scaling_dtype(const at::Tensor& rows, at::ScalarType dtype) {
    return dtype_beside(rows, dtype);
  }

  static void select_cat(const at::Tensor& out, const IndexSelectCatParams& p) {
    CudaCall call(out.device());
    cuda::index_select_cat(p, call.stream());
  }
  static void select_cat_backward(const at::Tensor& grad_out, const IndexSelectCatParams& p) {
    CudaCall call(grad_out.device());
    cuda::index_select_cat_backward(p, call.stream(cuda::index_select_cat_backward_workspace(p)));
  }
  static void add(const at::Tensor& input, const ScaledIndexAddParams& p) {
    CudaCall call(input.device());
    cuda::scaled_index_add(p, call.stream(cuda::scaled_index_add_workspace(p)));
  }
  static void add_backward(const at::Tensor& grad_out, const ScaledIndexAddBwdParams& p) {
    CudaCall call(grad_out.device());
    cuda::scaled_index_add_backward(p, call.stream(cuda::scaled_index_add_backward_workspace(p)));
  }
};

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, CUDA, m) { xformers::ops::implement_indexing<xformers::ops::CudaIndexing>(m); }
