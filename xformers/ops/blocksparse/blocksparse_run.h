// The block-sparse operators on tensors of a device: from tensors to the parameters of its kernels. A `Device` has
//   sdd, dsd, softmax, softmax_backward          (tensor, params): run its kernels where the tensor is
//   check_layout(where, layout, block_columns)   refuses a layout that leaves its matrix, unless the kernels do so
//                                                themselves, or nobody looks at it by now
#pragma once

#include "xformers/kernels/params/blocksparse.h"
#include "xformers/ops/blocksparse/blocksparse.h"
#include "xformers/ops/blocksparse/blocksparse_op.h"
#include "xformers/ops/common/to_params.h"

namespace xformers::ops {

// Contiguous tables, which params point into.
struct LoweredLayout {
  at::Tensor row_offsets, column_indices, perm;

  LoweredLayout(const at::Tensor& offsets, const at::Tensor& columns, const at::Tensor& places = {})
      : row_offsets(offsets.contiguous()),
        column_indices(columns.contiguous()),
        perm(places.defined() ? places.contiguous() : places) {}
  BlockLayout params(int64_t heads, int64_t block_columns, int64_t block) const {
    return {.heads = heads,
            .block_rows = heads > 0 ? (row_offsets.size(0) - 1) / heads : 0,
            .block_columns = block_columns,
            .block = block,
            .nnz = column_indices.size(0),
            .row_offsets = row_offsets.const_data_ptr<int32_t>(),
            .column_indices = column_indices.const_data_ptr<int32_t>(),
            .places = perm.defined() ? perm.const_data_ptr<int32_t>() : nullptr};
  }
};

inline HeadMatrices to_heads(const at::Tensor& t) {
  return {.data = const_cast<void*>(t.const_data_ptr()),
          .batch_stride = t.size(0) == 1 ? 0 : t.stride(0),
          .head_stride = t.size(1) == 1 ? 0 : t.stride(1),
          .row_stride = t.size(2) == 1 ? 0 : t.stride(2),
          .column_stride = t.size(3) == 1 ? 0 : t.stride(3)};
}

// As it is where rows or columns are contiguous.
inline at::Tensor by_rows_or_columns(const at::Tensor& t) {
  return t.stride(3) == 1 || t.stride(2) == 1 ? t : t.contiguous();
}
inline HeadMatrices to_operand(const at::Tensor& t) {
  return {.data = const_cast<void*>(t.const_data_ptr()),
          .batch_stride = t.stride(0),
          .head_stride = t.stride(1),
          .row_stride = t.stride(2),
          .column_stride = t.stride(3)};
}

template <class Device>
at::Tensor run_sdd(const BlockSdd& args) {
  args.check();
  const at::Tensor a = by_rows_or_columns(args.a), b = by_rows_or_columns(args.b);
  const int64_t block = args.block.expect_int();
  const LoweredLayout layout(args.row_offsets, args.column_indices);
  Device::check_layout(args.kName, layout, b.size(3) / block);
  at::Tensor out = args.empty();
  Device::sdd(a, {.dtype = to_dtype(a.scalar_type()),
                  .batch = a.size(0),
                  .depth = a.size(3),
                  .layout = layout.params(a.size(1), b.size(3) / block, block),
                  .a = to_operand(a),
                  .b = to_operand(b),
                  .out = out.mutable_data_ptr()});
  return out;
}

inline LoweredLayout lower(const BlockDsd& args, int64_t heads, int64_t block) {
  if (!args.transposed) return {args.row_offsets, args.column_indices};
  if (args.perm) return {*args.row_offsets_t, *args.column_indices_t, *args.perm};
  const BlockTables tables =
      transpose_blocks(args.row_offsets, args.column_indices, heads, args.m.expect_int() / block);
  return {tables.row_offsets_t, tables.column_indices_t, tables.perm};
}

template <class Device>
at::Tensor run_dsd(const BlockDsd& args) {
  args.check();
  const at::Tensor values = args.values.contiguous(), b = args.b.stride(3) == 1 ? args.b : args.b.contiguous();
  const int64_t block = values.size(2), heads = b.size(1);
  const LoweredLayout layout = lower(args, heads, block);
  Device::check_layout(args.kName, layout, b.size(2) / block);
  at::Tensor out = args.empty();
  Device::dsd(b, {.dtype = to_dtype(values.scalar_type()),
                  .batch = b.size(0),
                  .width = b.size(3),
                  .layout = layout.params(heads, b.size(2) / block, block),
                  .transposed_blocks = args.transposed,
                  .values = values.const_data_ptr(),
                  .b = to_operand(b),
                  .out = out.mutable_data_ptr()});
  return out;
}

template <class Device>
at::Tensor run_block_softmax(const BlockSoftmax& args) {
  args.check();
  const at::Tensor values = args.values.contiguous();
  const int64_t block = values.size(2);
  const LoweredLayout layout(args.row_offsets, args.column_indices);
  Device::check_layout("blocksparse_softmax", layout, args.n.expect_int() / block);
  at::Tensor out = args.empty();
  Device::softmax(values, {.dtype = to_dtype(values.scalar_type()),
                           .batch = values.size(0),
                           .layout = layout.params(args.heads.expect_int(), args.n.expect_int() / block, block),
                           .scale = args.scale,
                           .causal = args.causal,
                           .values = values.const_data_ptr(),
                           .bias = args.bias ? to_heads(*args.bias) : HeadMatrices{},
                           .out = out.mutable_data_ptr()});
  return out;
}

template <class Device>
at::Tensor run_block_softmax_backward(const BlockSoftmaxBackward& args) {
  args.check();
  const at::Tensor result = args.out.contiguous(), grad = args.grad_out.contiguous();
  const LoweredLayout layout(args.row_offsets, args.column_indices);
  constexpr int64_t kAnyColumns = 0x7fffffff;  // they are not looked at: all of them are good
  Device::check_layout(args.kName, layout, kAnyColumns);
  at::Tensor dx = args.empty();
  Device::softmax_backward(result, {.dtype = to_dtype(result.scalar_type()),
                                    .batch = result.size(0),
                                    .layout = layout.params(1, kAnyColumns, result.size(2)),
                                    .scale = args.scale,
                                    .out = result.const_data_ptr(),
                                    .dout = grad.const_data_ptr(),
                                    .dx = dx.mutable_data_ptr()});
  return dx;
}

template <class Device>
void implement_blocksparse(torch::Library& m) {
  implement<run_sdd<Device>>(m);
  implement<run_dsd<Device>>(m);
  implement<run_block_softmax<Device>>(m);
  implement<run_block_softmax_backward<Device>>(m);
}

}  // namespace xformers::ops
