#include "xformers/nn/functional/coo.h"

#include <ATen/ops/_convert_indices_from_coo_to_csr.h>
#include <ATen/ops/_sparse_coo_tensor_unsafe.h>
#include <torch/library.h>

#include "xformers/ops/common/check.h"
#include "xformers/ops/csr/csr.h"

namespace xformers::nn::functional {
namespace {

// Of a [batch, m, k]: batch * m rows, batch * k columns.
ops::CsrTensors rows_of_batch(const ops::Check& check, const at::Tensor& a) {
  if (!a.is_sparse()) check.fail("a", ops::describe(a), "a sparse COO tensor", "dense ones have torch's operators");
  check.dims("a", a, 3, "[batch, m, k]");
  const at::Tensor places = a.indices();  // [3, values], in row-major order
  const at::Tensor row = places[0] * a.size(1) + places[1], column = places[0] * a.size(2) + places[2];
  return {at::_convert_indices_from_coo_to_csr(row, a.size(0) * a.size(1), /*out_int32=*/true), column.to(at::kInt)};
}

}  // namespace

at::Tensor coo_bmm(const at::Tensor& a, const at::Tensor& b) {
  const ops::Check check("coo_bmm");
  const ops::CsrTensors pattern = rows_of_batch(check, a);
  check.dims("b", b, 3, "[batch, k, n]");
  check.equal("b.batch", b.size(0), a.size(0), "both have the same batch");
  check.equal("b.rows", b.size(1), a.size(2), "the inner dimensions of a product are equal");
  const at::Tensor product =
      ops::spmm(a.values().unsqueeze(0), b.reshape({1, b.size(0) * b.size(1), b.size(2)}), pattern);
  return product.view({a.size(0), a.size(1), b.size(2)});
}

at::Tensor coo_softmax(const at::Tensor& a) {
  const ops::CsrTensors pattern = rows_of_batch(ops::Check("coo_softmax"), a);
  const at::Tensor values = ops::sparse_softmax(a.values().unsqueeze(0), pattern).squeeze(0);
  return at::_sparse_coo_tensor_unsafe(a.indices(), values, a.sizes(), values.options().layout(at::kSparse),
                                       /*is_coalesced=*/true);
}

}  // namespace xformers::nn::functional

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  m.def("coo_bmm(Tensor a, Tensor b) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def("coo_softmax(Tensor a) -> Tensor", {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(xformers, CompositeImplicitAutograd, m) {
  m.impl("coo_bmm", xformers::nn::functional::coo_bmm);
  m.impl("coo_softmax", xformers::nn::functional::coo_softmax);
}
