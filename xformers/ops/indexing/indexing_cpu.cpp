// The indexing operators on CPU tensors.
#include "xformers/kernels/cpu/indexing/indexing_cpu.h"

#include "xformers/ops/common/threads.h"
#include "xformers/ops/indexing/indexing_run.h"

namespace xformers::ops {
namespace {

struct CpuIndexing {
  static void check_values(const char*, const std::string&, const at::Tensor&, int64_t) {}  // the kernels do
  static at::ScalarType scaling_dtype(const at::Tensor& rows, at::ScalarType /*dtype*/) { return compute_dtype(rows); }

  static void select_cat(const at::Tensor&, const IndexSelectCatParams& p) {
    cpu::index_select_cat(p, torch_threads());
  }
  static void select_cat_backward(const at::Tensor&, const IndexSelectCatParams& p) {
    cpu::index_select_cat_backward(p, torch_threads());
  }
  static void add(const at::Tensor&, const ScaledIndexAddParams& p) { cpu::scaled_index_add(p, torch_threads()); }
  static void add_backward(const at::Tensor&, const ScaledIndexAddBwdParams& p) {
    cpu::scaled_index_add_backward(p, torch_threads());
  }
};

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, CPU, m) { xformers::ops::implement_indexing<xformers::ops::CpuIndexing>(m); }
