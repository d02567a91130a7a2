// The indexing operators on tensors of a device: from tensors to the parameters of its kernels. A `Device` has
//   select_cat, select_cat_backward, add, add_backward   (tensor, params): run its kernels where the tensor is
//   check_values(where, name, index, rows)               refuses indices out of range, if it looks at them by now
//   scaling_dtype(rows, dtype)                           how they take, and give the gradient of, factors of `dtype`
#pragma once

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <string>

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

template <class Device>
at::Tensor index_select_cat_on(at::TensorList sources_arg, at::TensorList indices_arg) {
  check_index_select_cat(sources_arg, indices_arg);
  int64_t total = 0;
  std::vector<at::Tensor> sources, indices;
  for (size_t i = 0; i < sources_arg.size(); ++i) {
    sources.push_back(with_contiguous_rows(sources_arg[i]));
    indices.push_back(indices_arg[i].contiguous());
    Device::check_values("index_select_cat", "indices[" + std::to_string(i) + "]", indices[i], sources[i].size(0));
    total += indices[i].size(0) * sources[i].size(1);
  }
  at::Tensor out = at::empty({total}, sources[0].options());
  auto* packed = static_cast<char*>(out.mutable_data_ptr());
  std::vector<RowSelection> selections;
  for (size_t i = 0; i < sources.size(); ++i) {
    selections.push_back(to_selection(sources[i], indices[i], packed));
    packed += packed_bytes(sources[i], indices[i]);
  }
  Device::select_cat(out, IndexSelectCatParams{.dtype = to_dtype(out.scalar_type()),
                                               .selections = selections.data(),
                                               .num_selections = static_cast<int64_t>(selections.size())});
  return out;
}

template <class Device>
std::vector<at::Tensor> index_select_cat_backward_on(const at::Tensor& grad_out_arg, at::TensorList indices_arg,
                                                     c10::SymIntArrayRef rows, c10::SymIntArrayRef widths) {
  check_index_select_cat_backward(grad_out_arg, indices_arg, rows, widths);
  const at::Tensor grad_out = grad_out_arg.contiguous();
  auto* packed = static_cast<char*>(const_cast<void*>(grad_out.const_data_ptr()));
  std::vector<at::Tensor> grads, indices;
  std::vector<RowSelection> selections;
  for (size_t i = 0; i < indices_arg.size(); ++i) {
    indices.push_back(indices_arg[i].contiguous());
    grads.push_back(at::empty({rows[i].expect_int(), widths[i].expect_int()}, grad_out.options()));
    Device::check_values("index_select_cat_backward", "indices[" + std::to_string(i) + "]", indices[i],
                         grads[i].size(0));
    selections.push_back(to_selection(grads[i], indices[i], packed));
    packed += packed_bytes(grads[i], indices[i]);
  }
  Device::select_cat_backward(grad_out,
                              IndexSelectCatParams{.dtype = to_dtype(grad_out.scalar_type()),
                                                   .selections = selections.data(),
                                                   .num_selections = static_cast<int64_t>(selections.size())});
  return grads;
}

template <class Device>
void scaled_index_add_on(const at::Tensor& input, const at::Tensor& index_arg, const at::Tensor& source_arg,
                         const OptionalTensor& scaling_arg, double alpha) {
  check_scaled_index_add(input, index_arg, source_arg, scaling_arg);
  const at::Tensor index = index_arg.contiguous(), work = with_contiguous_rows(input);
  Device::check_values("scaled_index_add", "index", index, input.size(0));
  // Part of the input's own memory would change while it is read.
  const at::Tensor source = source_arg.is_alias_of(input) ? source_arg.clone() : with_contiguous_rows(source_arg);
  const at::ScalarType dtype =
      Device::scaling_dtype(input, scaling_arg ? scaling_arg->scalar_type() : input.scalar_type());
  const at::Tensor scaling = scaling_arg ? scaling_arg->to(dtype).contiguous() : at::Tensor();
  Device::add(input, ScaledIndexAddParams{.dtype = to_dtype(input.scalar_type()),
                                          .rows = input.size(0),
                                          .num_indices = index.size(0),
                                          .middle = input.size(1),
                                          .width = input.size(2),
                                          .input = to_rows_tensor(work),
                                          .source = to_rows_tensor(source),
                                          .index = index.const_data_ptr<int64_t>(),
                                          .scaling = scaling.defined() ? scaling.const_data_ptr() : nullptr,
                                          .alpha = alpha,
                                          .scaling_dtype = to_dtype(dtype)});
  if (!work.is_same(input)) input.copy_(work);
}

template <class Device>
std::tuple<at::Tensor, at::Tensor> scaled_index_add_backward_on(const at::Tensor& grad_out_arg,
                                                                const at::Tensor& index_arg,
                                                                const at::Tensor& source_arg,
                                                                const OptionalTensor& scaling_arg, double alpha,
                                                                bool need_dsource, bool need_dscaling) {
  check_scaled_index_add_backward(grad_out_arg, index_arg, source_arg, scaling_arg);
  const at::Tensor grad_out = with_contiguous_rows(grad_out_arg), index = index_arg.contiguous();
  Device::check_values("scaled_index_add_backward", "index", index, grad_out.size(0));
  const at::Tensor source = need_dscaling ? with_contiguous_rows(source_arg) : source_arg;
  const at::ScalarType result_dtype = scaling_arg ? scaling_arg->scalar_type() : grad_out.scalar_type();
  const at::ScalarType dtype = Device::scaling_dtype(grad_out, result_dtype);
  const at::Tensor scaling = scaling_arg ? scaling_arg->to(dtype).contiguous() : at::Tensor();
  at::Tensor dsource =
      need_dsource ? at::empty(source.sizes(), grad_out.options()) : at::empty({0}, grad_out.options());
  at::Tensor dscaling = at::empty({need_dscaling ? grad_out.size(2) : 0}, grad_out.options().dtype(dtype));
  Device::add_backward(grad_out,
                       ScaledIndexAddBwdParams{.dtype = to_dtype(grad_out.scalar_type()),
                                               .rows = grad_out.size(0),
                                               .num_indices = index.size(0),
                                               .middle = grad_out.size(1),
                                               .width = grad_out.size(2),
                                               .dout = to_rows_tensor(grad_out),
                                               .source = need_dscaling ? to_rows_tensor(source) : RowsTensor{},
                                               .dsource = need_dsource ? to_rows_tensor(dsource) : RowsTensor{},
                                               .index = index.const_data_ptr<int64_t>(),
                                               .scaling = scaling.defined() ? scaling.const_data_ptr() : nullptr,
                                               .alpha = alpha,
                                               .dscaling = need_dscaling ? dscaling.mutable_data_ptr() : nullptr,
                                               .scaling_dtype = to_dtype(dtype)});
  return {dsource, dscaling.to(result_dtype)};
}

template <class Device>
void register_indexing(torch::Library& m) {
  m.impl("index_select_cat", index_select_cat_on<Device>);
  m.impl("index_select_cat_backward", index_select_cat_backward_on<Device>);
  m.impl("scaled_index_add_", scaled_index_add_on<Device>);
  m.impl("scaled_index_add_backward", scaled_index_add_backward_on<Device>);
}

}  // namespace xformers::ops
