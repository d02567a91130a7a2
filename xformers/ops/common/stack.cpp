#include "xformers/ops/common/stack.h"

#include <ATen/WrapDimUtils.h>
#include <ATen/ops/as_strided.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>

namespace xformers::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// The view that `strides` (of get_stack_strides) describes.
at::Tensor stacked_view(at::TensorList tensors, int64_t dim, const at::DimVector& strides) {
  at::DimVector sizes(tensors[0].sizes());
  sizes.insert(sizes.begin() + at::maybe_wrap_dim(dim, tensors[0].dim() + 1), static_cast<int64_t>(tensors.size()));
  return tensors[0].as_strided(sizes, strides);
}

at::Tensor stack_gradients(at::TensorList tensors, int64_t dim) {
  const bool eager = std::all_of(tensors.begin(), tensors.end(), is_eager);
  const at::DimVector strides = eager ? get_stack_strides(tensors, dim) : at::DimVector();
  return strides.empty() ? at::stack(tensors, dim) : stacked_view(tensors, dim, strides);
}

struct UnbindFunction : torch::autograd::Function<UnbindFunction> {
  static variable_list forward(AutogradContext* context, const at::Tensor& x, int64_t dim) {
    context->saved_data["dim"] = dim;
    return x.unbind(dim);
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {  // missing ones are zeros by now
    return {stack_gradients(grads, context->saved_data["dim"].toInt()), at::Tensor()};
  }
};

struct StackFunction : torch::autograd::Function<StackFunction> {
  static at::Tensor forward(AutogradContext* context, at::TensorList tensors, int64_t dim) {
    context->saved_data["dim"] = dim;
    return stacked_view(tensors, dim, get_stack_strides(tensors, dim));
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    variable_list result = grads[0].unbind(context->saved_data["dim"].toInt());
    result.emplace_back();
    return result;
  }
};

std::vector<int64_t> stack_strides(at::TensorList tensors, int64_t dim) {
  const at::DimVector strides = get_stack_strides(tensors, dim);
  return {strides.begin(), strides.end()};
}

}  // namespace

at::DimVector get_stack_strides(at::TensorList tensors, int64_t dim) {
  if (tensors.size() <= 1 || dim > tensors[0].dim() || dim < -tensors[0].dim() - 1) return {};
  const at::Tensor& first = tensors[0];
  const int64_t step = tensors[1].storage_offset() - first.storage_offset();
  if (step < 0) return {};
  for (size_t i = 1; i < tensors.size(); ++i) {
    const at::Tensor& t = tensors[i];
    if (t.sizes() != first.sizes() || t.strides() != first.strides() || t.scalar_type() != first.scalar_type() ||
        t.device() != first.device() || !t.is_alias_of(first) ||
        t.storage_offset() != first.storage_offset() + static_cast<int64_t>(i) * step) {
      return {};
    }
  }
  at::DimVector strides(first.strides());
  strides.insert(strides.begin() + at::maybe_wrap_dim(dim, first.dim() + 1), step);
  return strides;
}

at::Tensor stack_or_none(at::TensorList tensors, int64_t dim) {
  if (!std::all_of(tensors.begin(), tensors.end(), is_eager) || get_stack_strides(tensors, dim).empty()) return {};
  return StackFunction::apply(tensors, dim);
}

std::vector<at::Tensor> unbind(const at::Tensor& x, int64_t dim) {
  if (!is_eager(x) || !x.requires_grad()) return x.unbind(dim);
  return UnbindFunction::apply(x, dim);
}

}  // namespace xformers::ops

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  m.def("get_stack_strides(Tensor[] tensors, int dim) -> int[]", xformers::ops::stack_strides);
  m.def("stack_or_none(Tensor(a)[] tensors, int dim) -> Tensor(a)", xformers::ops::stack_or_none);
  m.def("unbind(Tensor(a) x, int dim=0) -> Tensor(a)[]", xformers::ops::unbind);
}
