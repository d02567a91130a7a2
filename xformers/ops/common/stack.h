// Tensors that lie in memory as one stacked tensor would, such as the query, key and value of one packed projection:
// taking them apart and putting them together without a copy, backward too.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>

#include <vector>

namespace xformers::ops {

// Strides of at::stack(tensors, dim) if the tensors already lie like that, else empty (also for fewer than two tensors
// and for a dim beyond their dimensions).
at::DimVector get_stack_strides(at::TensorList tensors, int64_t dim);

// at::stack as a view, undefined where it would have to copy. Differentiable.
at::Tensor stack_or_none(at::TensorList tensors, int64_t dim);

// Tensor::unbind, whose backward copies nothing where the gradients already form a stack.
std::vector<at::Tensor> unbind(const at::Tensor& x, int64_t dim);

// Whether memory may be looked at: not while a tensor stands for one that is traced, compiled or transformed.
inline bool is_eager(const at::Tensor& t) {
  constexpr c10::DispatchKeySet kStandIns({c10::DispatchKey::Python, c10::DispatchKey::Functionalize,
                                           c10::DispatchKey::FuncTorchBatched, c10::DispatchKey::FuncTorchGradWrapper});
  return !t.key_set().has_any(kStandIns) && !c10::impl::TorchDispatchModeTLS::any_modes_set();
}

}  // namespace xformers::ops
