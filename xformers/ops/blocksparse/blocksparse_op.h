// The arguments of the block-sparse operators.
#pragma once

#include "xformers/ops/common/operator.h"

namespace xformers::ops {

struct BlockSdd {
  static constexpr const char* kName = "blocksparse_sdd";
  using Result = at::Tensor;
  at::Tensor a, b, row_offsets, column_indices;
  c10::SymInt block = 0;
  OptionalTensor row_offsets_t{}, column_indices_t{}, perm{};  // by columns: for the gradient of b

  static constexpr auto arguments() {
    using A = BlockSdd;
    return std::tuple{arg("a", &A::a),
                      arg("b", &A::b),
                      arg("row_offsets", &A::row_offsets),
                      arg("column_indices", &A::column_indices),
                      arg("block", &A::block).required(),
                      arg("row_offsets_t", &A::row_offsets_t),
                      arg("column_indices_t", &A::column_indices_t),
                      arg("perm", &A::perm)};
  }
  void check() const;
  at::Tensor empty() const {
    return empty_result({a.sym_size(0), column_indices.sym_size(0), block, block}, a.options());
  }
};

// The sparse matrix, or its transpose, times b. m: rows of the result.
struct BlockDsd {
  static constexpr const char* kName = "blocksparse_dsd";
  using Result = at::Tensor;
  at::Tensor values, b, row_offsets, column_indices;
  c10::SymInt m = 0;
  OptionalTensor row_offsets_t{}, column_indices_t{}, perm{};
  bool transposed = false;

  static constexpr auto arguments() {
    using A = BlockDsd;
    return std::tuple{arg("values", &A::values),
                      arg("b", &A::b),
                      arg("row_offsets", &A::row_offsets),
                      arg("column_indices", &A::column_indices),
                      arg("m", &A::m).required(),
                      arg("row_offsets_t", &A::row_offsets_t),
                      arg("column_indices_t", &A::column_indices_t),
                      arg("perm", &A::perm),
                      arg("transposed", &A::transposed)};
  }
  void check() const;
  at::Tensor empty() const { return empty_result({b.sym_size(0), b.sym_size(1), m, b.sym_size(3)}, b.options()); }
};

// n: columns of the matrix. bias [batch, heads, m, n], sizes of 1 expanded.
struct BlockSoftmax {
  static constexpr const char* kName = "blocksparse_softmax_inner";
  using Result = at::Tensor;
  at::Tensor values, row_offsets, column_indices;
  c10::SymInt heads = 0, n = 0;
  OptionalTensor bias{};
  double scale = 1;
  bool causal = false;

  static constexpr auto arguments() {
    using A = BlockSoftmax;
    return std::tuple{arg("values", &A::values),
                      arg("row_offsets", &A::row_offsets),
                      arg("column_indices", &A::column_indices),
                      arg("heads", &A::heads).required(),
                      arg("n", &A::n).required(),
                      arg("bias", &A::bias),
                      arg("scale", &A::scale),
                      arg("causal", &A::causal)};
  }
  void check() const;
  c10::SymInt block() const { return values.sym_size(2); }
  c10::SymInt block_rows() const { return (row_offsets.sym_size(0) - 1) / heads; }
  at::Tensor empty() const { return empty_result(values); }
};

struct BlockSoftmaxBackward {
  static constexpr const char* kName = "blocksparse_softmax_backward";
  using Result = at::Tensor;
  at::Tensor grad_out, out, row_offsets, column_indices;
  double scale = 1;

  static constexpr auto arguments() {
    using A = BlockSoftmaxBackward;
    return std::tuple{arg("grad_out", &A::grad_out), arg("out", &A::out), arg("row_offsets", &A::row_offsets),
                      arg("column_indices", &A::column_indices), arg("scale", &A::scale)};
  }
  void check() const;
  at::Tensor empty() const { return empty_result(out); }
};

}  // namespace xformers::ops
