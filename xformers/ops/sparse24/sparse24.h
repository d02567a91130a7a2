// 2:4 sparsity: of every 4 x 4 tile of a matrix at most two values in a row and two in a column are kept, so that the
// matrix and its transpose both have two zeros in any four neighbours. docs/ops/sparse24.md explains when it pays.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>

#include "xformers/kernels/base/error.h"

namespace xformers::ops {

// A matrix [rows, cols], packed (params/sparse24.h), and its transpose; which of its values are kept.
struct Sparse24Matrix {
  at::Tensor packed, meta;  // undefined packed_t, meta_t: only this orientation is there
  at::Tensor packed_t{}, meta_t{};
  at::Tensor threads_masks{};  // uint8 [4 ceil(rows / 32), 8 ceil(cols / 64), 8]
  int64_t rows = 0, cols = 0;
};

// x [rows, cols], unit column stride. algorithm: "" or "largest_values_greedy", "largest_abs_values_greedy",
// "causal1122"; backend: "cutlass" (any size), or "cusparselt" (multiples of 128), which are layouts.
Sparse24Matrix sparsify24(const at::Tensor& x, std::string_view algorithm = "", std::string_view backend = "cutlass");

// One orientation alone: packed and meta.
Sparse24Matrix sparsify24_one_way(const at::Tensor& x, std::string_view algorithm = "",
                                  std::string_view backend = "cutlass");

// The dense matrix again.
at::Tensor to_dense(const Sparse24Matrix& matrix, std::string_view backend = "cutlass");

// matrix @ b, b [cols, n] with one of its strides 1: [rows, n].
at::Tensor sparse24_matmul(const Sparse24Matrix& matrix, const at::Tensor& b, std::string_view backend = "cutlass");

// x W^T + bias with W = sparsify24(weight); x [..., in], weight [out, in], bias [out]. Differentiable in all three: the
// products with the sparse weight are sparse, forward and in the gradient of x. gradient, of the weight: "24dense" or
// "24sparse", zero where the weight was dropped; "ste", all of it.
at::Tensor sparse24_linear(const at::Tensor& x, const at::Tensor& weight,
                           const std::optional<at::Tensor>& bias = std::nullopt, std::string_view algorithm = "",
                           std::string_view gradient = "24dense", std::string_view backend = "cutlass");

// The same with a weight [out, in] that is packed already, for inference: x is not differentiated.
at::Tensor sparse24_linear(const at::Tensor& x, const Sparse24Matrix& weight,
                           const std::optional<at::Tensor>& bias = std::nullopt, std::string_view backend = "cutlass");

// sparsify24(activation(z)) W^T + bias: activations are sparse, the weight [out, hidden] is dense; z [..., hidden].
// activation: "relu", "squared_relu", "gelu" (tanh), "gelu_exact". Differentiable in z, weight and bias; the gradient
// of z is zero where the activation was dropped.
at::Tensor sparse24_activated_linear(const at::Tensor& z, const at::Tensor& weight,
                                     const std::optional<at::Tensor>& bias = std::nullopt,
                                     std::string_view activation = "gelu", std::string_view algorithm = "");

}  // namespace xformers::ops
