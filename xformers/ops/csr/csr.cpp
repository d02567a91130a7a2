// Schemas, public functions, checks, and what LibTorch's operators say.
#include "xformers/ops/csr/csr.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/_sparse_coo_tensor_unsafe.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/zeros.h>

#include <limits>

#include "xformers/ops/csr/csr_op.h"

namespace xformers::ops {
namespace {

// Ranks, dtypes, layouts and devices have always been RuntimeErrors in Python; sizes and contents are ValueErrors.
template <class Fn>
void as_runtime_error(const Fn& checks) {
  try {
    checks();
  } catch (const Error& error) {
    TORCH_CHECK(false, error.what());
  }
}

void check_dense(const Check& check, const char* name, const at::Tensor& t) {
  if (t.layout() != at::kStrided) check.fail(name, "sparse", "a dense tensor", "call to_dense() first");
}

void check_list(const Check& check, const char* name, const at::Tensor& list, const at::Tensor& beside,
                const char* beside_name) {
  check_dense(check, name, list);
  check.dims(name, list, 1, "[n] int32");
  if (list.scalar_type() != at::kInt) {
    check.fail(name, describe(list), "int32", "convert it with .int()");
  }
  check.same_device(name, list, beside, beside_name);
}

struct Operand {
  const char* name;
  const at::Tensor& t;
  int64_t dims;
  const char* layout;
};

// Operands share dtype and device with the first.
template <class Pattern>
void check_kinds(const char* where, std::initializer_list<Operand> operands, const Pattern& pattern) {
  as_runtime_error([&] {
    const Check check(where);
    const Operand& first = *operands.begin();
    for (const Operand& operand : operands) {
      check_dense(check, operand.name, operand.t);
      check.dims(operand.name, operand.t, operand.dims, operand.layout);
      check.floating(operand.name, operand.t);
      check.same_dtype(operand.name, operand.t, first.t, first.name);
      check.same_device(operand.name, operand.t, first.t, first.name);
    }
    check_list(check, "row_indices", pattern.row_indices, first.t, first.name);
    check_list(check, "row_offsets", pattern.row_offsets, first.t, first.name);
    check_list(check, "column_indices", pattern.column_indices, first.t, first.name);
  });
}

template <class Op>
void check_transposed(const Op& op, const at::Tensor& beside, const c10::SymInt& columns) {
  const Check check(Op::kName);
  const bool some = op.row_offsets_t || op.column_indices_t || op.perm;
  if (!some) return;
  if (!op.row_offsets_t || !op.column_indices_t || !op.perm) {
    check.fail("the pattern by columns", "given in part", "row_offsets_t, column_indices_t and perm, or none of them",
               "give what csr_transpose returns");
  }
  as_runtime_error([&] {
    check_list(check, "row_offsets_t", *op.row_offsets_t, beside, "values");
    check_list(check, "column_indices_t", *op.column_indices_t, beside, "values");
    check_list(check, "perm", *op.perm, beside, "values");
  });
  const c10::SymInt nnz = op.column_indices.sym_size(0);
  check.shape("row_offsets_t", *op.row_offsets_t, {columns + 1}, "one more than columns");
  check.shape("column_indices_t", *op.column_indices_t, {nnz}, "one row per value");
  check.shape("perm", *op.perm, {nnz}, "one number per value");
}

void check_offsets(const Check& check, const at::Tensor& row_offsets, const c10::SymInt& rows) {
  check.shape("row_offsets", row_offsets, {rows + 1}, "one more than rows");
}

void check_values(const Check& check, const char* name, const at::Tensor& values, const at::Tensor& column_indices) {
  check.equal((std::string(name) + ".size(1)").c_str(), values.sym_size(1), column_indices.sym_size(0),
              "one value per column index");
}

}  // namespace

void CsrSddmm::check() const {
  check_kinds(kName, {{"a", a, 3, "[batch, rows, depth]"}, {"b", b, 3, "[batch, columns, depth]"}}, *this);
  const Check check(kName);
  check.equal("b.size(0)", b.sym_size(0), a.sym_size(0), "a and b have one batch size");
  check.equal("b.size(2)", b.sym_size(2), a.sym_size(2), "b is given transposed, [batch, columns, depth]");
  check_offsets(check, row_offsets, a.sym_size(1));
  check_transposed(*this, a, b.sym_size(1));
}

void CsrSpmm::check() const {
  check_kinds(kName, {{"values", values, 2, "[batch, nnz]"}, {"b", b, 3, "[batch, columns, width]"}}, *this);
  const Check check(kName);
  if (b.sym_size(0) != 1 && values.sym_size(0) != 1) {
    check.equal("b.size(0)", b.sym_size(0), values.sym_size(0),
                "one batch size for both, or 1 for one that serves all");
  }
  check_values(check, "values", values, column_indices);
  if (m < 0) check.fail("m", std::to_string(m.expect_int()), "the rows of the result", "pass a size");
  const c10::SymInt rows = transposed ? b.sym_size(1) : m, columns = transposed ? m : b.sym_size(1);
  check_offsets(check, row_offsets, rows);
  check_transposed(*this, values, columns);
}

void CsrSoftmax::check() const {
  check_kinds(kName, {{"values", values, 2, "[batch, nnz]"}}, *this);
  const Check check(kName);
  check_offsets(check, row_offsets, m);
  check_values(check, "values", values, column_indices);
}

void CsrSoftmaxBackward::check() const {
  check_kinds(kName, {{"out", out, 2, "[batch, nnz]"}, {"grad", grad, 2, "[batch, nnz]"}}, *this);
  const Check check(kName);
  check.shape("grad", grad, out.sym_sizes(), "it has the shape of the result");
  check_offsets(check, row_offsets, m);
  check_values(check, "out", out, column_indices);
}

void CsrTranspose::check() const {
  const Check check(kName);
  as_runtime_error([&] {
    check_list(check, "row_offsets", row_offsets, column_indices, "column_indices");
    check_list(check, "column_indices", column_indices, row_offsets, "row_offsets");
  });
  if (n < 0) check.fail("n", std::to_string(n.expect_int()), "the number of columns", "pass a size");
  if (row_offsets.sym_size(0) < 1) check.fail("row_offsets", describe(row_offsets), "[rows + 1]", "it begins with 0");
}

namespace {

OptionalTensor offsets_of(const CsrTensors& p) {
  return p.transposed ? OptionalTensor(p.transposed->row_offsets) : std::nullopt;
}
OptionalTensor columns_of(const CsrTensors& p) {
  return p.transposed ? OptionalTensor(p.transposed->column_indices) : std::nullopt;
}
OptionalTensor perm_of(const CsrTensors& p) { return p.transposed ? OptionalTensor(p.transposed->perm) : std::nullopt; }

// int64 [nnz]: the row of each value.
at::Tensor rows_of(const at::Tensor& row_offsets, const c10::SymInt& nnz) {
  const at::Tensor places = at::arange(nnz, row_offsets.options());
  return at::searchsorted(row_offsets, places, /*out_int32=*/false, /*right=*/true) - 1;
}

at::Tensor to_dense(const at::Tensor& values, const at::Tensor& row_offsets, const at::Tensor& column_indices,
                    c10::SymInt columns) {
  const Check check("csr_to_dense");
  as_runtime_error([&] {
    check_list(check, "row_offsets", row_offsets, values, "values");
    check_list(check, "column_indices", column_indices, values, "values");
    check.dims("values", values, 2, "[batch, nnz]");
  });
  check_values(check, "values", values, column_indices);
  const c10::SymInt batch = values.sym_size(0), nnz = values.sym_size(1), rows = row_offsets.sym_size(0) - 1;
  const at::Tensor place =
      (rows_of(row_offsets, nnz) * columns + column_indices).unsqueeze(0).expand_symint({batch, nnz});
  const at::Tensor zeros = at::zeros_symint({batch, rows * columns}, values.options());
  const at::Tensor dense =
      values.scalar_type() == at::kBool ? zeros.scatter(1, place, values) : zeros.scatter_add(1, place, values);
  return dense.view_symint({batch, rows, columns});
}

at::Tensor csr_sddmm(const at::Tensor& a, const at::Tensor& b, const at::Tensor& row_indices,
                     const at::Tensor& row_offsets, const at::Tensor& column_indices) {
  return call(CsrSddmm{a, b, row_indices, row_offsets, column_indices});
}

// Rows of values in any order become offsets; the result is put back in the order given.
at::Tensor coo_sddmm(const at::Tensor& a, const at::Tensor& b, const at::Tensor& row_indices, const at::Tensor& rows,
                     const at::Tensor& column_indices) {
  as_runtime_error([&] {
    const Check check("coo_sddmm");
    check_list(check, "row_offsets", rows, a, "a");
    check_list(check, "column_indices", column_indices, a, "a");
    check.dims("a", a, 3, "[batch, rows, depth]");
  });
  Check("coo_sddmm")
      .equal("row_offsets.size(0)", rows.sym_size(0), column_indices.sym_size(0), "it holds the row of each value");
  const auto [sorted, order] = rows.sort(/*stable=*/true, /*dim=*/0, /*descending=*/false);
  // Rows outside of [0, m) leave offsets that don't reach from 0 to nnz, which is an error like any other.
  const at::Tensor offsets =
      at::searchsorted(sorted, at::arange(a.sym_size(1) + 1, rows.options()), /*out_int32=*/true);
  const at::Tensor values = call(CsrSddmm{a, b, row_indices, offsets, column_indices.index_select(0, order)});
  return values.index_select(1, order.argsort());
}

at::Tensor masked_product(const at::Tensor& a, const at::Tensor& b, const at::Tensor& mask) {
  const Check check("matmul_with_mask");
  check.same_dtype("b", b, a, "a");
  return at::matmul(a, b).masked_fill(mask.eq(0), -std::numeric_limits<double>::infinity());
}

// All of the batch as one matrix, whose rows and columns of batch element i lie behind those of i - 1.
at::Tensor product_at(const at::Tensor& a, const at::Tensor& b, const at::Tensor& mask) {
  const Check check("matmul_with_mask");
  as_runtime_error([&] {
    check.dims("a", a, 3, "[batch, m, k] beside a sparse mask");
    check.dims("b", b, 3, "[batch, k, n] beside a sparse mask");
    check.same_dtype("b", b, a, "a");
    check.same_device("b", b, a, "a");
    check.same_device("mask", mask, a, "a");
  });
  const c10::SymInt batch = a.sym_size(0), m = a.sym_size(1), k = a.sym_size(2), n = b.sym_size(2);
  check.shape("b", b, {batch, k, n}, "a [batch, m, k] and b [batch, k, n]");
  check.shape("mask", mask, {batch, m, n}, "a sparse mask has the shape of the product");
  as_runtime_error([&] {
    if (mask.sparse_dim() != 3) check.fail("mask.sparse_dim()", std::to_string(mask.sparse_dim()), "3", "make it so");
  });
  const at::Tensor places = mask.coalesce().indices();
  const at::Tensor element = places.select(0, 0);
  const at::Tensor rows = (element * m + places.select(0, 1)).to(at::kInt);
  const at::Tensor columns = (element * n + places.select(0, 2)).to(at::kInt);
  const at::Tensor offsets = at::searchsorted(rows, at::arange(batch * m + 1, rows.options()), /*out_int32=*/true);
  const at::Tensor values = call(CsrSddmm{a.reshape_symint({1, batch * m, k}),
                                          b.transpose(1, 2).reshape_symint({1, batch * n, k}), rows, offsets, columns});
  return at::_sparse_coo_tensor_unsafe_symint(places, values.squeeze(0), {batch, m, n}, values.scalar_type(),
                                              at::kSparse, values.device(), std::nullopt, /*is_coalesced=*/true);
}

}  // namespace

CsrTransposed csr_transpose(const CsrTensors& pattern, int64_t columns) {
  const auto [offsets, rows, perm] = call(CsrTranspose{pattern.row_offsets, pattern.column_indices, columns});
  return {offsets, rows, perm};
}

at::Tensor sddmm(const at::Tensor& a, const at::Tensor& b, const CsrTensors& p) {
  return call(CsrSddmm{a, b, p.row_offsets, p.row_offsets, p.column_indices, offsets_of(p), columns_of(p), perm_of(p)});
}

at::Tensor spmm(const at::Tensor& values, const at::Tensor& b, const CsrTensors& p) {
  return call(CsrSpmm{b, p.row_offsets, values, p.row_offsets, p.column_indices, p.row_offsets.sym_size(0) - 1,
                      offsets_of(p), columns_of(p), perm_of(p)});
}

at::Tensor sparse_softmax(const at::Tensor& values, const CsrTensors& p) {
  return call(CsrSoftmax{p.row_offsets.sym_size(0) - 1, 0, p.row_offsets, values, p.row_offsets, p.column_indices});
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> csr_from_dense(const at::Tensor& dense) {
  const Check check("csr_from_dense");
  check_dense(check, "dense", dense);
  check.dims("dense", dense, 3, "[batch, rows, columns]");
  const int64_t batch = dense.size(0), rows = dense.size(1), columns = dense.size(2);
  if (columns > std::numeric_limits<int32_t>::max()) {
    check.fail("dense.size(2)", std::to_string(columns), "less than 2^31", "split the matrix");
  }
  const at::Tensor visible = dense.ne(0);
  const at::Tensor first = batch > 0 ? visible.select(0, 0) : at::zeros({rows, columns}, visible.options());
  if (batch > 1 && !visible.eq(first).all().item<bool>()) {
    check.fail("dense", "non-zero in other places from one batch element to another",
               "one pattern for all of the batch", "make a tensor of each, or fill the places that others have");
  }
  const at::Tensor places = first.reshape({rows * columns}).nonzero().squeeze(1);
  const int64_t nnz = places.size(0);
  if (nnz > std::numeric_limits<int32_t>::max()) {
    check.fail("the number of values", std::to_string(nnz), "less than 2^31", "split the matrix");
  }
  const at::Tensor starts = at::arange(rows + 1, places.options()) * columns;
  return {dense.reshape({batch, rows * columns}).index_select(1, places),
          at::searchsorted(places, starts, /*out_int32=*/true),
          places.remainder(std::max<int64_t>(columns, 1)).to(at::kInt)};
}

at::Tensor csr_to_dense(const at::Tensor& values, const CsrTensors& p, int64_t columns) {
  return to_dense(values, p.row_offsets, p.column_indices, columns);
}

at::Tensor matmul_with_mask(const at::Tensor& a, const at::Tensor& b, const at::Tensor& mask) {
  return mask.layout() == at::kSparse ? product_at(a, b, mask) : masked_product(a, b, mask);
}

}  // namespace xformers::ops

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  using namespace xformers::ops;
  define<CsrSddmm, CsrSpmm, CsrSoftmax, CsrSoftmaxBackward, CsrTranspose>(m);
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  for (const char* name : {"csr_sddmm", "coo_sddmm"}) {
    m.def((std::string(name) + "(Tensor a, Tensor b, Tensor row_indices, Tensor row_offsets, Tensor column_indices) -> "
                               "Tensor")
              .c_str(),
          tags);
  }
  m.def("csr_from_dense(Tensor dense) -> (Tensor values, Tensor row_offsets, Tensor column_indices)", tags);
  m.def("csr_to_dense(Tensor values, Tensor row_offsets, Tensor column_indices, SymInt n) -> Tensor", tags);
  m.def("matmul_with_mask(Tensor a, Tensor b, Tensor mask) -> Tensor", tags);
}
TORCH_LIBRARY_IMPL(xformers, CompositeImplicitAutograd, m) {
  m.impl("csr_sddmm", xformers::ops::csr_sddmm);
  m.impl("coo_sddmm", xformers::ops::coo_sddmm);
  m.impl("csr_from_dense", xformers::ops::csr_from_dense);
  m.impl("csr_to_dense", xformers::ops::to_dense);
  m.impl("matmul_with_mask", xformers::ops::matmul_with_mask);
}
