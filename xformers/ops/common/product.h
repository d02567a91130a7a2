// A matrix product as one call whose algorithm a device may choose by measuring (kernels/cuda/product).
#pragma once

#include "xformers/ops/common/operator.h"

namespace xformers::ops {

// a b + bias: a [m, k], b [k, n], bias [n] or none. Without gradients of its own. Same bits as at::mm and at::addmm.
struct Product {
  static constexpr const char* kName = "product";
  using Result = at::Tensor;
  at::Tensor a, b;
  OptionalTensor bias{};

  static constexpr auto arguments() {
    return std::tuple{arg("a", &Product::a), arg("b", &Product::b), arg("bias", &Product::bias)};
  }
};

inline at::Tensor product(const at::Tensor& a, const at::Tensor& b, const OptionalTensor& bias = std::nullopt) {
  return call(Product{a, b, bias});
}

at::Tensor plain_product(const Product& args);  // LibTorch's

}  // namespace xformers::ops
