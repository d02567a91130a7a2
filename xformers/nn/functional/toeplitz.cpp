#include "xformers/nn/functional/toeplitz.h"

#include <ATen/ops/bmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/zeros.h>

#include "xformers/ops/common/operator_node.h"

namespace xformers::nn::functional {
namespace {

constexpr int64_t kBlock = 64;  // queries whose scores exist at a time

// A block of `rows` queries from `begin`: query n and key m of the whole sequence meet in column m - n + begin + rows -
// 1 of [rows, seqlen + rows - 1] products with consecutive rows of rel, of which row 0 is that of (last query, first
// key).
struct Block {
  Block(const at::Tensor& rel, int64_t seqlen, int64_t begin_arg)
      : begin(begin_arg), rows(std::min(kBlock, seqlen - begin)), width(seqlen + rows - 1) {
    const int64_t longest = (rel.size(0) + 1) / 2;
    first = longest - 1 - (begin + rows - 1);
  }
  at::Tensor queries(const at::Tensor& t) const { return t.narrow(2, begin, rows); }  // [batch, heads, seqlen, dim]
  at::Tensor of(const at::Tensor& rel) const { return rel.narrow(0, first, width); }

  // [..., rows, width] contiguous, as the scores [..., rows, seqlen]: element (i, m) is in column m - i + rows - 1.
  at::Tensor skewed(const at::Tensor& products) const {
    c10::DimVector sizes(products.sizes()), strides(products.strides());
    sizes.back() = width - rows + 1;
    strides[strides.size() - 2] -= 1;
    return products.as_strided(sizes, strides, products.storage_offset() + rows - 1);
  }

  int64_t begin, rows, width, first;
};

at::Tensor by_head(const at::Tensor& t) { return t.transpose(1, 2); }

template <class Fn>
void for_each_block(const at::Tensor& rel, int64_t seqlen, Fn fn) {
  for (int64_t begin = 0; begin < seqlen; begin += kBlock) fn(Block(rel, seqlen, begin));
}

at::Tensor forward(const ToeplitzArgs& args) {
  const at::Tensor q = by_head(args.q), v = by_head(args.v);
  at::Tensor result = args.empty(), out = by_head(result);
  for_each_block(args.rel, q.size(2), [&](const Block& block) {
    const at::Tensor products = at::matmul(block.queries(q), block.of(args.rel).t()).contiguous();
    block.queries(out).copy_(at::matmul(block.skewed(products), v));
  });
  return result;
}

ToeplitzBackwardArgs::Result backward(const ToeplitzBackwardArgs& args) {
  const at::Tensor q = by_head(args.q), v = by_head(args.v), grad_out = by_head(args.grad_out);
  auto result = args.empty();
  const at::Tensor dq = by_head(std::get<0>(result)), dv = by_head(std::get<1>(result)).zero_();
  const at::Tensor drel = std::get<2>(result).zero_();
  for_each_block(args.rel, q.size(2), [&](const Block& block) {
    const at::Tensor rel = block.of(args.rel), grad = block.queries(grad_out);
    const at::Tensor products = at::matmul(block.queries(q), rel.t()).contiguous();
    dv.add_(at::matmul(block.skewed(products).transpose(-1, -2), grad));
    const at::Tensor dproducts = at::zeros_like(products);
    block.skewed(dproducts).copy_(at::matmul(grad, v.transpose(-1, -2)));
    block.queries(dq).copy_(at::matmul(dproducts, rel));
    const int64_t dim = q.size(3);
    block.of(drel).add_(at::matmul(dproducts.reshape({-1, block.width}).t(), block.queries(q).reshape({-1, dim})));
  });
  return result;
}

struct ToeplitzKept {
  static constexpr const char* kNode = "XformersToeplitzProductBackward";
  at::Tensor q, v, rel;
  static constexpr auto members() { return std::tuple{&ToeplitzKept::q, &ToeplitzKept::v, &ToeplitzKept::rel}; }
  ops::variable_list gradients(const ops::variable_list& grads, const ops::Wanted& wanted) const {
    const auto [dq, dv, drel] = ops::call(ToeplitzBackwardArgs{{q, v, rel}, grads[0]});
    return wanted.only(dq, dv, drel);
  }
};

at::Tensor autograd(const ToeplitzArgs& args) {
  const auto node = ops::record<ToeplitzKept>(args.q, args.v, args.rel);
  at::Tensor out = ops::with_history(ops::below_autograd(args), node);
  if (node) node->keep({args.q, args.v, args.rel});
  return out;
}

}  // namespace

at::Tensor ToeplitzArgs::empty() const {
  return at::empty_symint({q.sym_size(0), q.sym_size(1), q.sym_size(2), v.sym_size(3)}, q.options());
}

ToeplitzBackwardArgs::Result ToeplitzBackwardArgs::empty() const {
  return {ops::empty_result(q), ops::empty_result(v), ops::empty_result(rel)};
}

at::Tensor toeplitz_product(const ToeplitzArgs& args) { return ops::call(args); }

}  // namespace xformers::nn::functional

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  using namespace xformers::nn::functional;
  xformers::ops::define<ToeplitzArgs, ToeplitzBackwardArgs>(m);
}
TORCH_LIBRARY_IMPL(xformers, CompositeExplicitAutograd, m) {
  using namespace xformers::nn::functional;
  xformers::ops::implement<forward>(m);
  xformers::ops::implement<backward>(m);
}
TORCH_LIBRARY_IMPL(xformers, Autograd, m) {
  using namespace xformers::nn::functional;
  xformers::ops::implement<autograd>(m);
  xformers::ops::implement_no_gradients<ToeplitzBackwardArgs>(m);
}
