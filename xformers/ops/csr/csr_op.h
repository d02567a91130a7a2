// The arguments of the operators of compressed sparse rows. row_indices, rows in an order that would balance their
// load, is taken for compatibility and not looked at: any order is right.
#pragma once

#include "xformers/ops/common/operator.h"

namespace xformers::ops {

struct CsrSddmm {
  static constexpr const char* kName = "sddmm_sputnik";
  using Result = at::Tensor;
  at::Tensor a, b, row_indices, row_offsets, column_indices;
  OptionalTensor row_offsets_t{}, column_indices_t{}, perm{};  // the pattern by columns, for the gradient of b

  static constexpr auto arguments() {
    using A = CsrSddmm;
    return std::tuple{arg("a", &A::a),
                      arg("b", &A::b),
                      arg("row_indices", &A::row_indices),
                      arg("row_offsets", &A::row_offsets),
                      arg("column_indices", &A::column_indices),
                      arg("row_offsets_t", &A::row_offsets_t),
                      arg("column_indices_t", &A::column_indices_t),
                      arg("perm", &A::perm)};
  }
  void check() const;
  at::Tensor empty() const { return empty_result({a.sym_size(0), column_indices.sym_size(0)}, a.options()); }
};

// The sparse matrix, or its transpose, times b. m: rows of the result.
struct CsrSpmm {
  static constexpr const char* kName = "spmm_sputnik";
  using Result = at::Tensor;
  at::Tensor b, row_indices, values, row_offsets, column_indices;
  c10::SymInt m = 0;
  OptionalTensor row_offsets_t{}, column_indices_t{}, perm{};
  bool transposed = false;

  static constexpr auto arguments() {
    using A = CsrSpmm;
    return std::tuple{arg("b", &A::b),
                      arg("row_indices", &A::row_indices),
                      arg("values", &A::values),
                      arg("row_offsets", &A::row_offsets),
                      arg("column_indices", &A::column_indices),
                      arg("m", &A::m).required(),
                      arg("row_offsets_t", &A::row_offsets_t),
                      arg("column_indices_t", &A::column_indices_t),
                      arg("perm", &A::perm),
                      arg("transposed", &A::transposed)};
  }
  void check() const;
  c10::SymInt batch() const { return values.sym_size(0) == 1 ? b.sym_size(0) : values.sym_size(0); }
  at::Tensor empty() const { return empty_result({batch(), m, b.sym_size(2)}, values.options()); }
};

struct CsrSoftmax {
  static constexpr const char* kName = "sparse_softmax_sputnik";
  using Result = at::Tensor;
  c10::SymInt m = 0, n = 0;
  at::Tensor row_indices, values, row_offsets, column_indices;

  static constexpr auto arguments() {
    using A = CsrSoftmax;
    return std::tuple{arg("m", &A::m).required(),          arg("n", &A::n).required(),
                      arg("row_indices", &A::row_indices), arg("values", &A::values),
                      arg("row_offsets", &A::row_offsets), arg("column_indices", &A::column_indices)};
  }
  void check() const;
  at::Tensor empty() const { return empty_result(values); }
};

struct CsrSoftmaxBackward {
  static constexpr const char* kName = "sparse_softmax_backward_sputnik";
  using Result = at::Tensor;
  c10::SymInt m = 0, n = 0;
  at::Tensor row_indices, out, grad, row_offsets, column_indices;

  static constexpr auto arguments() {
    using A = CsrSoftmaxBackward;
    return std::tuple{arg("m", &A::m).required(),
                      arg("n", &A::n).required(),
                      arg("row_indices", &A::row_indices),
                      arg("out", &A::out),
                      arg("grad", &A::grad),
                      arg("row_offsets", &A::row_offsets),
                      arg("column_indices", &A::column_indices)};
  }
  void check() const;
  at::Tensor empty() const { return empty_result(out); }
};

struct CsrTranspose {
  static constexpr const char* kName = "csr_transpose";
  static constexpr const char* kResults[] = {"row_offsets_t", "column_indices_t", "perm"};
  using Result = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
  at::Tensor row_offsets, column_indices;
  c10::SymInt n = 0;  // columns

  static constexpr auto arguments() {
    using A = CsrTranspose;
    return std::tuple{arg("row_offsets", &A::row_offsets), arg("column_indices", &A::column_indices),
                      arg("n", &A::n).required()};
  }
  void check() const;
  Result empty() const {
    return {empty_result({n + 1}, row_offsets.options()), empty_result(column_indices), empty_result(column_indices)};
  }
};

}  // namespace xformers::ops
