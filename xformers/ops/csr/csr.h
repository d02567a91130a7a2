// Products and softmax of sparse matrices in compressed rows: a batch of matrices that share one pattern. After
// "Sparse GPU Kernels for Deep Learning" (Gale et al., arXiv:2006.10901), whose operators these are by name.
//
// Values and dense matrices share one dtype, fp32, fp64, bf16 or fp16; sums are fp32 (fp64 for fp64), rounded once.
// Offsets and indices are int32. Any strides; any number of values. What is said of shapes and patterns is checked
// before memory is touched: xformers::Error where sizes do not fit, offsets descend or columns lie outside, c10::Error
// for the wrong rank, dtype, layout or device.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

#include "xformers/kernels/base/error.h"

namespace xformers::ops {

// The same pattern by columns.
struct CsrTransposed {
  at::Tensor row_offsets;     // int32 [columns + 1]
  at::Tensor column_indices;  // int32 [nnz]
  at::Tensor perm;            // int32 [nnz]: its value i is value perm[i] of the pattern; a stable order of columns
};

struct CsrTensors {
  at::Tensor row_offsets;                                  // int32 [rows + 1], ascending from 0 to nnz
  at::Tensor column_indices;                               // int32 [nnz], each in [0, columns)
  std::optional<CsrTransposed> transposed = std::nullopt;  // what gradients need; computed where it is missing
};

CsrTransposed csr_transpose(const CsrTensors& pattern, int64_t columns);

// a [batch, rows, depth], b [batch, columns, depth] -> [batch, nnz]: a b^T where the pattern has values.
// Differentiable in a and b, twice.
at::Tensor sddmm(const at::Tensor& a, const at::Tensor& b, const CsrTensors& pattern);

// b [batch, columns, width], values [batch, nnz] -> [batch, rows, width]: the sparse matrix times b; values or b of
// batch 1 serve all. Differentiable in values and b, twice.
at::Tensor spmm(const at::Tensor& values, const at::Tensor& b, const CsrTensors& pattern);

// Softmax over the values of each row, [batch, nnz]; an empty row has none. Differentiable.
at::Tensor sparse_softmax(const at::Tensor& values, const CsrTensors& pattern);

// dense [batch, rows, columns], of any dtype, whose non-zeros lie in the same places for all of the batch
// (xformers::Error where not): values [batch, nnz], row_offsets, column_indices, in row-major order. Waits for the
// device.
std::tuple<at::Tensor, at::Tensor, at::Tensor> csr_from_dense(const at::Tensor& dense);

// [batch, rows, columns] with zeros elsewhere; values that share a place add up. Differentiable in values.
at::Tensor csr_to_dense(const at::Tensor& values, const CsrTensors& pattern, int64_t columns);

// a [..., m, k], b [..., k, n]. A dense mask that broadcasts to [..., m, n]: a b, -inf where mask is 0. A sparse COO
// mask [batch, m, n] beside 3-D a and b of its batch: a b where the mask has values, sparse on its places.
// Differentiable in a and b.
at::Tensor matmul_with_mask(const at::Tensor& a, const at::Tensor& b, const at::Tensor& mask);

}  // namespace xformers::ops
