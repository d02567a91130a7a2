// Schema, and the product of devices that leave nothing to choose.
#include "xformers/ops/product/product.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/mm.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

namespace xformers::ops {

XFORMERS_TYPED_OP(product_op, Product, "product")

at::Tensor plain_product(const at::Tensor& a, const at::Tensor& b, const OptionalTensor& bias) {
  return bias ? at::addmm(*bias, a, b) : at::mm(a, b);
}

}  // namespace xformers::ops

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  m.def("product(Tensor a, Tensor b, Tensor? bias=None) -> Tensor", {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(xformers, CompositeExplicitAutograd, m) { m.impl("product", xformers::ops::plain_product); }

TORCH_LIBRARY_IMPL(xformers, Autograd, m) { m.impl("product", torch::autograd::autogradNotImplementedFallback()); }
