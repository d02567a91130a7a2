// Schema, and the product of devices that leave nothing to choose.
#include "xformers/ops/common/product.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/mm.h>

#include "xformers/ops/common/operator_node.h"

namespace xformers::ops {

at::Tensor plain_product(const Product& args) {
  return args.bias ? at::addmm(*args.bias, args.a, args.b) : at::mm(args.a, args.b);
}

}  // namespace xformers::ops

TORCH_LIBRARY_FRAGMENT(xformers, m) { xformers::ops::define<xformers::ops::Product>(m); }

TORCH_LIBRARY_IMPL(xformers, CompositeExplicitAutograd, m) {
  xformers::ops::implement<xformers::ops::plain_product>(m);
}

TORCH_LIBRARY_IMPL(xformers, Autograd, m) { xformers::ops::implement_no_gradients<xformers::ops::Product>(m); }
