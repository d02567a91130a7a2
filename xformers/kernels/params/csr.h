// What the kernels of compressed sparse rows are asked to do: a batch of matrices [rows, columns] that share one
// pattern, each with values of its own. Strides in elements; rows of dense matrices are contiguous.
#pragma once

#include <cstdint>

#include "xformers/kernels/base/dtype.h"

namespace xformers {

// Which places have values: row r has those of [row_offsets[r], row_offsets[r + 1]), in any order of columns.
struct CsrPattern {
  int64_t rows = 0, columns = 0, nnz = 0;
  const int32_t* row_offsets = nullptr;     // [rows + 1], ascending from 0 to nnz
  const int32_t* column_indices = nullptr;  // [nnz], each in [0, columns)
};

// One matrix per batch element; a stride of 0 gives all the same one.
struct DenseMatrices {
  void* data = nullptr;  // [batch, rows, width]
  int64_t batch_stride = 0, row_stride = 0;
};

// out[b, i] = the dot product of row r of a with row c of b, for value i at place (r, c).
struct CsrSddmmParams {
  DType dtype = DType::kFloat32;
  int64_t batch = 0, depth = 0;
  CsrPattern pattern;
  DenseMatrices a;      // [batch, rows, depth]
  DenseMatrices b;      // [batch, columns, depth]
  void* out = nullptr;  // [batch, nnz], contiguous
};

// out[b, r] = the sum over row r's values v at columns c of v * dense[b, c].
struct CsrSpmmParams {
  DType dtype = DType::kFloat32;
  int64_t batch = 0, width = 0;
  CsrPattern pattern;
  const void* values = nullptr;  // [batch, nnz], rows contiguous
  int64_t values_stride = 0;
  const int32_t* places = nullptr;  // [nnz], each in [0, nnz): place i of the pattern has values[places[i]]; null: [i]
  DenseMatrices dense;              // [batch, columns, width]
  DenseMatrices out;                // [batch, rows, width], written whole
};

// Per row r of the pattern, over its values alone: y = exp(x - max(x)) / sum(exp(x - max(x))). A row of -inf alone is
// NaN. Columns are not looked at.
struct CsrSoftmaxFwdParams {
  DType dtype = DType::kFloat32;
  int64_t batch = 0;
  CsrPattern pattern;
  const void* values = nullptr;  // [batch, nnz], contiguous, as is the result
  void* out = nullptr;
};

// From the result alone: dx = y * (dy - sum(dy * y)).
struct CsrSoftmaxBwdParams {
  DType dtype = DType::kFloat32;
  int64_t batch = 0;
  CsrPattern pattern;
  const void* out = nullptr;
  const void* dout = nullptr;
  void* dx = nullptr;
};

// The same pattern by columns: place i of the transposed one is places[i] of the given one; within a column in the
// order of that.
struct CsrTransposeParams {
  CsrPattern pattern;
  int32_t* column_offsets = nullptr;  // [columns + 1]
  int32_t* row_indices = nullptr;     // [nnz]
  int32_t* places = nullptr;          // [nnz]
};

}  // namespace xformers
