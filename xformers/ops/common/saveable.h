// What autograd may keep of an operator's arguments.
#pragma once

#include <torch/csrc/autograd/variable.h>

namespace xformers::ops {

// Offsets, page tables, indices, random states and masks of booleans carry no gradient, so it does not matter in which
// mode they were made: of those made under inference mode, which autograd refuses to save, a copy is kept.
inline at::Tensor saveable(const at::Tensor& tensor) {
  using torch::autograd::isDifferentiableType;
  const bool copied = tensor.defined() && tensor.is_inference() && !isDifferentiableType(tensor.scalar_type());
  return copied ? tensor.clone() : tensor;
}

}  // namespace xformers::ops
