// The operators of compressed sparse rows on tensors of a device: from tensors to the parameters of its kernels. A
// `Device` has
//   sddmm, spmm, softmax, softmax_backward   (tensor, params): run its kernels where the tensor is
//   check_offsets, check_pattern             (where, pattern): refuse a pattern that leaves its matrix, unless the
//   kernels
//                                            do so themselves, or nobody looks at it by now
//   check_places(where, places)              the same of an order of the values
#pragma once

#include "xformers/kernels/params/csr.h"
#include "xformers/ops/common/to_params.h"
#include "xformers/ops/csr/csr.h"
#include "xformers/ops/csr/csr_op.h"

namespace xformers::ops {

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

inline DenseMatrices to_matrices(const at::Tensor& t) {
  return {.data = const_cast<void*>(t.const_data_ptr()),
          .batch_stride = t.size(0) == 1 ? 0 : t.stride(0),
          .row_stride = t.stride(1)};
}

template <class Device>
at::Tensor run_sddmm(const CsrSddmm& args) {
  args.check();
  const at::Tensor a = with_unit_last_stride(args.a), b = with_unit_last_stride(args.b);
  const LoweredPattern pattern(args.row_offsets, args.column_indices);
  Device::check_pattern("sddmm", pattern, b.size(1));
  at::Tensor out = args.empty();
  Device::sddmm(a, {.dtype = to_dtype(a.scalar_type()),
                    .batch = a.size(0),
                    .depth = a.size(2),
                    .pattern = pattern.params(b.size(1)),
                    .a = to_matrices(a),
                    .b = to_matrices(b),
                    .out = out.mutable_data_ptr()});
  return out;
}

template <class Device>
at::Tensor run_spmm(const CsrSpmm& args) {
  args.check();
  const at::Tensor b = with_unit_last_stride(args.b), values = with_unit_last_stride(args.values);
  CsrTransposed by_columns;
  if (args.transposed) {
    by_columns = args.perm ? CsrTransposed{*args.row_offsets_t, *args.column_indices_t, args.perm->contiguous()}
                           : csr_transpose({args.row_offsets, args.column_indices}, args.m.expect_int());
  }
  const LoweredPattern pattern(args.transposed ? by_columns.row_offsets : args.row_offsets,
                               args.transposed ? by_columns.column_indices : args.column_indices);
  Device::check_pattern("spmm", pattern, b.size(1));
  if (args.transposed) Device::check_places("spmm", by_columns.perm);
  at::Tensor out = args.empty();
  Device::spmm(b, {.dtype = to_dtype(b.scalar_type()),
                   .batch = out.size(0),
                   .width = b.size(2),
                   .pattern = pattern.params(b.size(1)),
                   .values = values.const_data_ptr(),
                   .values_stride = values.size(0) == 1 ? 0 : values.stride(0),
                   .places = args.transposed ? by_columns.perm.const_data_ptr<int32_t>() : nullptr,
                   .dense = to_matrices(b),
                   .out = to_matrices(out)});
  return out;
}

template <class Device>
at::Tensor run_sparse_softmax(const CsrSoftmax& args) {
  args.check();
  const at::Tensor values = args.values.contiguous();
  const LoweredPattern pattern(args.row_offsets, args.column_indices);
  Device::check_offsets("sparse_softmax", pattern);
  at::Tensor out = args.empty();
  Device::softmax(values, {.dtype = to_dtype(values.scalar_type()),
                           .batch = values.size(0),
                           .pattern = pattern.params(0),
                           .values = values.const_data_ptr(),
                           .out = out.mutable_data_ptr()});
  return out;
}

template <class Device>
at::Tensor run_sparse_softmax_backward(const CsrSoftmaxBackward& args) {
  args.check();
  const at::Tensor result = args.out.contiguous(), grad = args.grad.contiguous();
  const LoweredPattern pattern(args.row_offsets, args.column_indices);
  Device::check_offsets("sparse_softmax_backward", pattern);
  at::Tensor dx = args.empty();
  Device::softmax_backward(result, {.dtype = to_dtype(result.scalar_type()),
                                    .batch = result.size(0),
                                    .pattern = pattern.params(0),
                                    .out = result.const_data_ptr(),
                                    .dout = grad.const_data_ptr(),
                                    .dx = dx.mutable_data_ptr()});
  return dx;
}

template <class Device>
void implement_csr(torch::Library& m) {
  implement<run_sddmm<Device>>(m);
  implement<run_spmm<Device>>(m);
  implement<run_sparse_softmax<Device>>(m);
  implement<run_sparse_softmax_backward<Device>>(m);
}

}  // namespace xformers::ops
