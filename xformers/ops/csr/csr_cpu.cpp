// The operators of compressed sparse rows on CPU tensors; any other device is refused.
#include "xformers/kernels/cpu/csr/csr_cpu.h"

#include "xformers/ops/common/cpu_only.h"
#include "xformers/ops/common/threads.h"
#include "xformers/ops/common/to_params.h"
#include "xformers/ops/csr/csr.h"
#include "xformers/ops/csr/csr_op.h"

namespace xformers::ops {
namespace {

// Contiguous offsets and columns, which params point into.
struct LoweredPattern {
  at::Tensor row_offsets, column_indices;

  LoweredPattern(const at::Tensor& offsets, const at::Tensor& columns)
      : row_offsets(offsets.contiguous()), column_indices(columns.contiguous()) {}
  CsrPattern params(int64_t columns) const {
    return {.rows = row_offsets.size(0) - 1,
            .columns = columns,
            .nnz = column_indices.size(0),
            .row_offsets = row_offsets.const_data_ptr<int32_t>(),
            .column_indices = column_indices.const_data_ptr<int32_t>()};
  }
};

DenseMatrices to_matrices(const at::Tensor& t) {
  return {.data = const_cast<void*>(t.const_data_ptr()),
          .batch_stride = t.size(0) == 1 ? 0 : t.stride(0),
          .row_stride = t.stride(1)};
}

at::Tensor sddmm_cpu(const CsrSddmm& args) {
  args.check();
  const at::Tensor a = with_unit_last_stride(args.a), b = with_unit_last_stride(args.b);
  const LoweredPattern pattern(args.row_offsets, args.column_indices);
  at::Tensor out = args.empty();
  cpu::csr_sddmm({.dtype = to_dtype(a.scalar_type()),
                  .batch = a.size(0),
                  .depth = a.size(2),
                  .pattern = pattern.params(b.size(1)),
                  .a = to_matrices(a),
                  .b = to_matrices(b),
                  .out = out.mutable_data_ptr()},
                 torch_threads());
  return out;
}

at::Tensor spmm_cpu(const CsrSpmm& args) {
  args.check();
  const at::Tensor b = with_unit_last_stride(args.b), values = with_unit_last_stride(args.values);
  CsrTransposed by_columns;
  if (args.transposed) {
    by_columns = args.perm ? CsrTransposed{*args.row_offsets_t, *args.column_indices_t, args.perm->contiguous()}
                           : csr_transpose({args.row_offsets, args.column_indices}, args.m.expect_int());
  }
  const LoweredPattern pattern(args.transposed ? by_columns.row_offsets : args.row_offsets,
                               args.transposed ? by_columns.column_indices : args.column_indices);
  at::Tensor out = args.empty();
  cpu::csr_spmm({.dtype = to_dtype(b.scalar_type()),
                 .batch = out.size(0),
                 .width = b.size(2),
                 .pattern = pattern.params(b.size(1)),
                 .values = values.const_data_ptr(),
                 .values_stride = values.size(0) == 1 ? 0 : values.stride(0),
                 .places = args.transposed ? by_columns.perm.const_data_ptr<int32_t>() : nullptr,
                 .dense = to_matrices(b),
                 .out = to_matrices(out)},
                torch_threads());
  return out;
}

at::Tensor softmax_cpu(const CsrSoftmax& args) {
  args.check();
  const at::Tensor values = args.values.contiguous();
  const LoweredPattern pattern(args.row_offsets, args.column_indices);
  at::Tensor out = args.empty();
  cpu::csr_softmax_forward({.dtype = to_dtype(values.scalar_type()),
                            .batch = values.size(0),
                            .pattern = pattern.params(0),
                            .values = values.const_data_ptr(),
                            .out = out.mutable_data_ptr()},
                           torch_threads());
  return out;
}

at::Tensor softmax_backward_cpu(const CsrSoftmaxBackward& args) {
  args.check();
  const at::Tensor result = args.out.contiguous(), grad = args.grad.contiguous();
  const LoweredPattern pattern(args.row_offsets, args.column_indices);
  at::Tensor dx = args.empty();
  cpu::csr_softmax_backward({.dtype = to_dtype(result.scalar_type()),
                             .batch = result.size(0),
                             .pattern = pattern.params(0),
                             .out = result.const_data_ptr(),
                             .dout = grad.const_data_ptr(),
                             .dx = dx.mutable_data_ptr()},
                            torch_threads());
  return dx;
}

CsrTranspose::Result transpose_cpu(const CsrTranspose& args) {
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
  implement<sddmm_cpu>(m);
  implement<spmm_cpu>(m);
  implement<softmax_cpu>(m);
  implement<softmax_backward_cpu>(m);
  implement<transpose_cpu>(m);
}

TORCH_LIBRARY_IMPL(xformers, CompositeExplicitAutograd, m) {
  using namespace xformers::ops;
  refuse_other_devices(
      m, {CsrSddmm::kName, CsrSpmm::kName, CsrSoftmax::kName, CsrSoftmaxBackward::kName, CsrTranspose::kName});
}
