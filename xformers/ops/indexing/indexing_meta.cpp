// Shapes without data; sizes stay symbolic.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "xformers/ops/indexing/indexing_op.h"

namespace xformers::ops {
namespace {

at::Tensor index_select_cat_meta(at::TensorList sources, at::TensorList indices) {
  check_index_select_cat(sources, indices);
  c10::SymInt total = 0;
  for (size_t i = 0; i < sources.size(); ++i) total += indices[i].sym_size(0) * sources[i].sym_size(1);
  return at::empty_symint({total}, sources[0].options());
}

std::vector<at::Tensor> index_select_cat_backward_meta(const at::Tensor& grad_out, at::TensorList indices,
                                                       c10::SymIntArrayRef rows, c10::SymIntArrayRef widths) {
  std::vector<at::Tensor> grads;
  for (size_t i = 0; i < indices.size(); ++i) {
    grads.push_back(at::empty_symint({rows[i], widths[i]}, grad_out.options()));
  }
  return grads;
}

void scaled_index_add_meta(const at::Tensor& input, const at::Tensor& index, const at::Tensor& source,
                           const OptionalTensor& scaling, double /*alpha*/) {
  check_scaled_index_add(input, index, source, scaling);
}

std::tuple<at::Tensor, at::Tensor> scaled_index_add_backward_meta(const at::Tensor& grad_out, const at::Tensor& index,
                                                                  const at::Tensor& source,
                                                                  const OptionalTensor& scaling, double /*alpha*/,
                                                                  bool need_dsource, bool need_dscaling) {
  check_scaled_index_add_backward(grad_out, index, source, scaling);
  const auto dscaling_options = scaling ? scaling->options() : grad_out.options();
  return {
      need_dsource ? at::empty_symint(source.sym_sizes(), grad_out.options()) : at::empty({0}, grad_out.options()),
      need_dscaling ? at::empty_symint({grad_out.sym_size(2)}, dscaling_options) : at::empty({0}, dscaling_options)};
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, Meta, m) {
  m.impl("index_select_cat", xformers::ops::index_select_cat_meta);
  m.impl("index_select_cat_backward", xformers::ops::index_select_cat_backward_meta);
  m.impl("scaled_index_add_", xformers::ops::scaled_index_add_meta);
  m.impl("scaled_index_add_backward", xformers::ops::scaled_index_add_backward_meta);
}
