// A matrix product as one call whose algorithm a device may choose by measuring (kernels/cuda/product).
#pragma once

#include "xformers/ops/common/arguments.h"

namespace xformers::ops {

// a b + bias: a [m, k], b [k, n], bias [n] or none. Without gradients of its own. Same bits as at::mm and at::addmm.
using Product = at::Tensor(const at::Tensor& a, const at::Tensor& b, const OptionalTensor& bias);
const c10::TypedOperatorHandle<Product>& product_op();

inline at::Tensor product(const at::Tensor& a, const at::Tensor& b, const OptionalTensor& bias = std::nullopt) {
  return product_op().call(a, b, bias);
}

at::Tensor plain_product(const at::Tensor& a, const at::Tensor& b, const OptionalTensor& bias);  // LibTorch's

}  // namespace xformers::ops
