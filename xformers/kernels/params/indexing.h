// What the indexing kernels are asked to do. Strides in elements; rows are contiguous. Pointers of CUDA calls, but that
// to the selections, point to device memory.
#pragma once

#include <cstddef>
#include <cstdint>

#include "xformers/kernels/base/dtype.h"

namespace xformers {

// Rows index[0 ... num_rows) of one source, which go to `packed` one after the other.
struct RowSelection {
  void* source = nullptr;  // [source_rows, width]
  int64_t row_stride = 0;
  int64_t source_rows = 0, width = 0;
  const int64_t* index = nullptr;  // [num_rows], each in [0, source_rows)
  int64_t num_rows = 0;
  void* packed = nullptr;  // [num_rows, width], contiguous
};

// Forward: source -> packed. Backward: packed is the gradient of the result and source its own, which is written whole:
// zero where no index points, the sum in fp32 (fp64) where several do.
struct IndexSelectCatParams {
  DType dtype = DType::kFloat32;
  const RowSelection* selections = nullptr;
  int64_t num_selections = 0;
};

struct RowsTensor {
  void* data = nullptr;  // [rows, middle, width]
  int64_t row_stride = 0, middle_stride = 0;
};

// input[index[i], m, :] += alpha * scaling * source[i, m, :], in fp32 (fp64 for fp64) with one rounding; repeated
// indices add up.
struct ScaledIndexAddParams {
  DType dtype = DType::kFloat32;
  int64_t rows = 0, num_indices = 0, middle = 0, width = 0;
  RowsTensor input;                // [rows, middle, width]
  RowsTensor source;               // [num_indices, middle, width]
  const int64_t* index = nullptr;  // [num_indices], each in [0, rows)
  const void* scaling = nullptr;   // [width]; nullptr: 1
  double alpha = 1;
  DType scaling_dtype = compute_dtype(dtype);  // on CUDA also 16 bits, unless dtype is fp64
};

// dsource[i, m] = alpha * scaling * dout[index[i], m];  dscaling = sum over i, m of alpha * dout[index[i], m] *
// source[i, m]
struct ScaledIndexAddBwdParams {
  DType dtype = DType::kFloat32;
  int64_t rows = 0, num_indices = 0, middle = 0, width = 0;
  RowsTensor dout;     // [rows, middle, width]
  RowsTensor source;   // only for dscaling
  RowsTensor dsource;  // no data: not wanted
  const int64_t* index = nullptr;
  const void* scaling = nullptr;
  double alpha = 1;
  void* dscaling = nullptr;                    // [width]; nullptr: not wanted
  DType scaling_dtype = compute_dtype(dtype);  // of scaling and dscaling, as above
};

}  // namespace xformers
