// Gradients of the indexing operators.
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include "xformers/ops/common/gradient_node.h"
#include "xformers/ops/indexing/indexing_op.h"

namespace xformers::ops {
namespace {

using torch::autograd::variable_list;

variable_list index_select_cat_gradients(const variable_list& grads, const SavedForGradient& saved) {
  const size_t count = saved.tensors.size();
  const c10::SymIntArrayRef sizes(saved.sizes);
  std::vector<at::Tensor> result =
      index_select_cat_backward_op().call(grads[0], saved.tensors, sizes.slice(0, count), sizes.slice(count));
  return {result.begin(), result.end()};
}

at::Tensor index_select_cat_autograd(at::TensorList sources, at::TensorList indices) {
  check_index_select_cat(sources, indices);  // below, a mix of devices would already have one kernel chosen
  const auto node = GradientNode::record("XformersIndexSelectCatBackward", index_select_cat_gradients, sources.vec());
  at::Tensor out = below_autograd([&] { return index_select_cat_op().call(sources, indices); });
  if (node) {
    std::vector<c10::SymInt> sizes;
    for (const int64_t dim : {0, 1}) {
      for (const at::Tensor& source : sources) sizes.push_back(source.sym_size(dim));
    }
    node->save(indices.vec(), {}, std::move(sizes));
  }
  return with_history(std::move(out), node);
}

// Saved: index, source, scaling, the latter two only where needed.
variable_list scaled_index_add_gradients(const variable_list& grads, const SavedForGradient& saved) {
  variable_list result(3);
  result[0] = grads[0];
  if (!saved.wanted[1] && !saved.wanted[2]) return result;
  const at::Tensor& index = saved.tensors[0];
  // Without a gradient of scaling only the shape of the source matters, which is that of its gradient.
  const at::Tensor source = saved.tensors[1].defined()
                                ? saved.tensors[1]
                                : grads[0].new_empty_symint({1}).expand_symint(
                                      {index.sym_size(0), grads[0].sym_size(1), grads[0].sym_size(2)});
  auto [dsource, dscaling] = scaled_index_add_backward_op().call(grads[0], index, source, to_optional(saved.tensors[2]),
                                                                 saved.numbers[0], saved.wanted[1], saved.wanted[2]);
  if (saved.wanted[1]) result[1] = dsource;
  if (saved.wanted[2]) result[2] = dscaling;
  return result;
}

void scaled_index_add_autograd(const at::Tensor& input, const at::Tensor& index, const at::Tensor& source,
                               const OptionalTensor& scaling, double alpha) {
  check_scaled_index_add(input, index, source, scaling);
  const auto node = GradientNode::record("XformersScaledIndexAddBackward", scaled_index_add_gradients,
                                         {input, source, defined_or_empty(scaling)});
  check_inplace(input, node != nullptr);
  below_autograd([&] { scaled_index_add_op().call(input, index, source, scaling, alpha); });
  if (node) {
    const bool scaling_needs_grad = scaling && scaling->requires_grad();
    node->save({index, scaling_needs_grad ? source : at::Tensor(), defined_or_empty(scaling)}, {alpha});
  }
  written_inplace(input, node);
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, Autograd, m) {
  m.impl("index_select_cat", xformers::ops::index_select_cat_autograd);
  m.impl("scaled_index_add_", xformers::ops::scaled_index_add_autograd);
  m.impl("index_select_cat_backward", torch::autograd::autogradNotImplementedFallback());  // refuses double backward
  m.impl("scaled_index_add_backward", torch::autograd::autogradNotImplementedFallback());
}
