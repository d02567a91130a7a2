// The indexing operators on CPU tensors.
#include "xformers/kernels/cpu/indexing/indexing_cpu.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "xformers/ops/common/threads.h"
#include "xformers/ops/common/to_params.h"
#include "xformers/ops/indexing/indexing_op.h"

namespace xformers::ops {
namespace {

// Views that kernels take: the last dimension contiguous, whatever the other strides.
at::Tensor with_contiguous_rows(const at::Tensor& t) {
  return t.stride(-1) == 1 || t.size(-1) <= 1 ? t : t.contiguous();
}

RowSelection to_selection(const at::Tensor& source, const at::Tensor& index, char* packed) {
  return {.source = const_cast<void*>(source.const_data_ptr()),
          .row_stride = source.stride(0),
          .source_rows = source.size(0),
          .width = source.size(1),
          .index = index.const_data_ptr<int64_t>(),
          .num_rows = index.size(0),
          .packed = packed};
}

at::Tensor index_select_cat_cpu(at::TensorList sources_arg, at::TensorList indices_arg) {
  check_index_select_cat(sources_arg, indices_arg);
  int64_t total = 0;
  std::vector<at::Tensor> sources, indices;
  for (size_t i = 0; i < sources_arg.size(); ++i) {
    sources.push_back(with_contiguous_rows(sources_arg[i]));
    indices.push_back(indices_arg[i].contiguous());
    total += indices[i].size(0) * sources[i].size(1);
  }
  at::Tensor out = at::empty({total}, sources[0].options());
  auto* packed = static_cast<char*>(out.mutable_data_ptr());
  std::vector<RowSelection> selections;
  for (size_t i = 0; i < sources.size(); ++i) {
    selections.push_back(to_selection(sources[i], indices[i], packed));
    packed += indices[i].size(0) * sources[i].size(1) * static_cast<int64_t>(out.element_size());
  }
  cpu::index_select_cat({.dtype = to_dtype(out.scalar_type()),
                         .selections = selections.data(),
                         .num_selections = static_cast<int64_t>(selections.size())},
                        torch_threads());
  return out;
}

std::vector<at::Tensor> index_select_cat_backward_cpu(const at::Tensor& grad_out_arg, at::TensorList indices_arg,
                                                      c10::SymIntArrayRef rows, c10::SymIntArrayRef widths) {
  check_index_select_cat_backward(grad_out_arg, indices_arg, rows, widths);
  const at::Tensor grad_out = grad_out_arg.contiguous();
  auto* packed = static_cast<char*>(const_cast<void*>(grad_out.const_data_ptr()));
  std::vector<at::Tensor> grads, indices;
  std::vector<RowSelection> selections;
  for (size_t i = 0; i < indices_arg.size(); ++i) {
    indices.push_back(indices_arg[i].contiguous());
    grads.push_back(at::empty({rows[i].expect_int(), widths[i].expect_int()}, grad_out.options()));
    selections.push_back(to_selection(grads[i], indices[i], packed));
    packed += indices[i].size(0) * grads[i].size(1) * static_cast<int64_t>(grad_out.element_size());
  }
  cpu::index_select_cat_backward({.dtype = to_dtype(grad_out.scalar_type()),
                                  .selections = selections.data(),
                                  .num_selections = static_cast<int64_t>(selections.size())},
                                 torch_threads());
  return grads;
}

RowsTensor to_rows_tensor(const at::Tensor& t) {
  return {.data = const_cast<void*>(t.const_data_ptr()), .row_stride = t.stride(0), .middle_stride = t.stride(1)};
}

void scaled_index_add_cpu(const at::Tensor& input, const at::Tensor& index_arg, const at::Tensor& source_arg,
                          const OptionalTensor& scaling_arg, double alpha) {
  check_scaled_index_add(input, index_arg, source_arg, scaling_arg);
  const at::Tensor index = index_arg.contiguous(), work = with_contiguous_rows(input);
  // Part of the input's own memory would change while it is read.
  const at::Tensor source = source_arg.is_alias_of(input) ? source_arg.clone() : with_contiguous_rows(source_arg);
  const at::Tensor scaling = scaling_arg ? scaling_arg->to(compute_dtype(input)).contiguous() : at::Tensor();
  cpu::scaled_index_add({.dtype = to_dtype(input.scalar_type()),
                         .rows = input.size(0),
                         .num_indices = index.size(0),
                         .middle = input.size(1),
                         .width = input.size(2),
                         .input = to_rows_tensor(work),
                         .source = to_rows_tensor(source),
                         .index = index.const_data_ptr<int64_t>(),
                         .scaling = scaling.defined() ? scaling.const_data_ptr() : nullptr,
                         .alpha = alpha},
                        torch_threads());
  if (!work.is_same(input)) input.copy_(work);
}

std::tuple<at::Tensor, at::Tensor> scaled_index_add_backward_cpu(const at::Tensor& grad_out_arg,
                                                                 const at::Tensor& index_arg,
                                                                 const at::Tensor& source_arg,
                                                                 const OptionalTensor& scaling_arg, double alpha,
                                                                 bool need_dsource, bool need_dscaling) {
  check_scaled_index_add_backward(grad_out_arg, index_arg, source_arg, scaling_arg);
  const at::Tensor grad_out = with_contiguous_rows(grad_out_arg), index = index_arg.contiguous();
  const at::Tensor source = need_dscaling ? with_contiguous_rows(source_arg) : source_arg;
  const auto compute = grad_out.options().dtype(compute_dtype(grad_out));
  const at::Tensor scaling = scaling_arg ? scaling_arg->to(compute.dtype()).contiguous() : at::Tensor();
  at::Tensor dsource =
      need_dsource ? at::empty(source.sizes(), grad_out.options()) : at::empty({0}, grad_out.options());
  at::Tensor dscaling = at::empty({need_dscaling ? grad_out.size(2) : 0}, compute);
  cpu::scaled_index_add_backward({.dtype = to_dtype(grad_out.scalar_type()),
                                  .rows = grad_out.size(0),
                                  .num_indices = index.size(0),
                                  .middle = grad_out.size(1),
                                  .width = grad_out.size(2),
                                  .dout = to_rows_tensor(grad_out),
                                  .source = to_rows_tensor(source),
                                  .dsource = need_dsource ? to_rows_tensor(dsource) : RowsTensor{},
                                  .index = index.const_data_ptr<int64_t>(),
                                  .scaling = scaling.defined() ? scaling.const_data_ptr() : nullptr,
                                  .alpha = alpha,
                                  .dscaling = need_dscaling ? dscaling.mutable_data_ptr() : nullptr},
                                 torch_threads());
  return {dsource, dscaling.to(scaling_arg ? scaling_arg->scalar_type() : grad_out.scalar_type())};
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, CPU, m) {
  m.impl("index_select_cat", xformers::ops::index_select_cat_cpu);
  m.impl("index_select_cat_backward", xformers::ops::index_select_cat_backward_cpu);
  m.impl("scaled_index_add_", xformers::ops::scaled_index_add_cpu);
  m.impl("scaled_index_add_backward", xformers::ops::scaled_index_add_backward_cpu);
}
