// The indexing operators on tensors of a device: from tensors to the parameters of its kernels. A `Device` has
//   select_cat, select_cat_backward, add, add_backward   (tensor, params): run its kernels where the tensor is
//   check_values(where, name, index, rows)               refuses indices out of range, if it looks at them by now
//   scaling_dtype(rows, dtype)                           how they take, and give the gradient of, factors of `dtype`
#pragma once

#include <string>

#include "xformers/kernels/params/indexing.h"
#include "xformers/ops/common/to_params.h"
#include "xformers/ops/indexing/indexing_op.h"

namespace xformers::ops {

inline RowSelection to_selection(const at::Tensor& source, const at::Tensor& index, char* packed) {
  return {.source = const_cast<void*>(source.const_data_ptr()),
          .row_stride = source.stride(0),
          .source_rows = source.size(0),
          .width = source.size(1),
          .index = index.const_data_ptr<int64_t>(),
          .num_rows = index.size(0),
          .packed = packed};
}

inline int64_t packed_bytes(const at::Tensor& source, const at::Tensor& index) {
  return index.size(0) * source.size(1) * static_cast<int64_t>(source.element_size());
}

inline RowsTensor to_rows_tensor(const at::Tensor& t) {
  return {.data = const_cast<void*>(t.const_data_ptr()), .row_stride = t.stride(0), .middle_stride = t.stride(1)};
}

inline IndexSelectCatParams to_params(const at::Tensor& packed, const std::vector<RowSelection>& selections) {
  return {.dtype = to_dtype(packed.scalar_type()),
          .selections = selections.data(),
          .num_selections = static_cast<int64_t>(selections.size())};
}

template <class Device>
at::Tensor run_index_select_cat(const IndexSelectCat& args) {
  args.check();
  at::Tensor out = args.empty();
  auto* packed = static_cast<char*>(out.mutable_data_ptr());
  std::vector<at::Tensor> sources, indices;
  std::vector<RowSelection> selections;
  for (size_t i = 0; i < args.sources.size(); ++i) {
    sources.push_back(with_unit_last_stride(args.sources[i]));
    indices.push_back(args.indices[i].contiguous());
    Device::check_values(args.kName, "indices[" + std::to_string(i) + "]", indices[i], sources[i].size(0));
    selections.push_back(to_selection(sources[i], indices[i], packed));
    packed += packed_bytes(sources[i], indices[i]);
  }
  Device::select_cat(out, to_params(out, selections));
  return out;
}

template <class Device>
std::vector<at::Tensor> run_index_select_cat_backward(const IndexSelectCatBackward& args) {
  args.check();
  const at::Tensor grad_out = args.grad_out.contiguous();
  auto* packed = static_cast<char*>(const_cast<void*>(grad_out.const_data_ptr()));
  std::vector<at::Tensor> grads = args.empty(), indices;
  std::vector<RowSelection> selections;
  for (size_t i = 0; i < args.indices.size(); ++i) {
    indices.push_back(args.indices[i].contiguous());
    Device::check_values(args.kName, "indices[" + std::to_string(i) + "]", indices[i], grads[i].size(0));
    selections.push_back(to_selection(grads[i], indices[i], packed));
    packed += packed_bytes(grads[i], indices[i]);
  }
  Device::select_cat_backward(grad_out, to_params(grad_out, selections));
  return grads;
}

template <class Device>
void run_scaled_index_add(const ScaledIndexAdd& args) {
  args.check();
  const at::Tensor &input = args.input, index = args.index.contiguous(), work = with_unit_last_stride(input);
  Device::check_values("scaled_index_add", "index", index, input.size(0));
  // Part of the input's own memory would change while it is read.
  const at::Tensor source = args.source.is_alias_of(input) ? args.source.clone() : with_unit_last_stride(args.source);
  const at::ScalarType dtype = Device::scaling_dtype(input, (args.scaling ? *args.scaling : input).scalar_type());
  const at::Tensor scaling = in_dtype(args.scaling, dtype);
  Device::add(input, ScaledIndexAddParams{.dtype = to_dtype(input.scalar_type()),
                                          .rows = input.size(0),
                                          .num_indices = index.size(0),
                                          .middle = input.size(1),
                                          .width = input.size(2),
                                          .input = to_rows_tensor(work),
                                          .source = to_rows_tensor(source),
                                          .index = index.const_data_ptr<int64_t>(),
                                          .scaling = data_or_null(scaling),
                                          .alpha = args.alpha,
                                          .scaling_dtype = to_dtype(dtype)});
  if (!work.is_same(input)) input.copy_(work);
}

template <class Device>
ScaledIndexAddBackward::Result run_scaled_index_add_backward(const ScaledIndexAddBackward& args) {
  args.check();
  const at::Tensor grad_out = with_unit_last_stride(args.grad_out), index = args.index.contiguous();
  Device::check_values(args.kName, "index", index, grad_out.size(0));
  const at::Tensor source = args.need_dscaling ? with_unit_last_stride(args.source) : args.source;
  const at::ScalarType dtype = Device::scaling_dtype(grad_out, args.dscaling_dtype());
  const at::Tensor scaling = in_dtype(args.scaling, dtype);
  at::Tensor dsource = args.empty_dsource(), dscaling = args.empty_dscaling(dtype);
  Device::add_backward(grad_out,
                       ScaledIndexAddBwdParams{.dtype = to_dtype(grad_out.scalar_type()),
                                               .rows = grad_out.size(0),
                                               .num_indices = index.size(0),
                                               .middle = grad_out.size(1),
                                               .width = grad_out.size(2),
                                               .dout = to_rows_tensor(grad_out),
                                               .source = args.need_dscaling ? to_rows_tensor(source) : RowsTensor{},
                                               .dsource = args.need_dsource ? to_rows_tensor(dsource) : RowsTensor{},
                                               .index = index.const_data_ptr<int64_t>(),
                                               .scaling = data_or_null(scaling),
                                               .alpha = args.alpha,
                                               .dscaling = args.need_dscaling ? dscaling.mutable_data_ptr() : nullptr,
                                               .scaling_dtype = to_dtype(dtype)});
  return {dsource, dscaling.to(args.dscaling_dtype())};
}

template <class Device>
void implement_indexing(torch::Library& m) {
  implement<run_index_select_cat<Device>>(m);
  implement<run_index_select_cat_backward<Device>>(m);
  implement<run_scaled_index_add<Device>>(m);
  implement<run_scaled_index_add_backward<Device>>(m);
}

}  // namespace xformers::ops
