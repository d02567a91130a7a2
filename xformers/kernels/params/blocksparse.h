// What the block-sparse kernels are asked to do: [batch, heads] matrices of square blocks, of which a layout per head
// says which are stored. A layout is a pattern of compressed rows (csr.h) over blocks: row head * block_rows + r, and
// columns that count within a head. Strides in elements.
#pragma once

#include <cstdint>

#include "xformers/kernels/base/dtype.h"
#include "xformers/kernels/params/csr.h"

namespace xformers {

struct BlockLayout {
  int64_t heads = 0, block_rows = 0, block_columns = 0;  // blocks per head
  int64_t block = 0;                                     // elements along a block's side: a multiple of 16
  int64_t nnz = 0;
  const int32_t* row_offsets = nullptr;     // [heads * block_rows + 1]
  const int32_t* column_indices = nullptr;  // [nnz], each in [0, block_columns)
  const int32_t* places = nullptr;          // [nnz]: its block i is stored at places[i]; null: at i
};

// Dense [batch, heads, rows, columns]: of the last two strides one is 1.
struct HeadMatrices {
  void* data = nullptr;
  int64_t batch_stride = 0, head_stride = 0, row_stride = 0, column_stride = 1;
};

// out[z, i] = block i of a b: rows of block row r of a times columns of block column c of b.
struct BlockSddParams {
  DType dtype = DType::kFloat32;
  int64_t batch = 0, depth = 0;
  BlockLayout layout;
  HeadMatrices a;       // [batch, heads, block_rows * block, depth]
  HeadMatrices b;       // [batch, heads, depth, block_columns * block]
  void* out = nullptr;  // [batch, nnz, block, block], contiguous
};

// out[z, h, r] = the sum over block row r's blocks of block * (rows of b of block column c).
struct BlockDsdParams {
  DType dtype = DType::kFloat32;
  int64_t batch = 0, width = 0;
  BlockLayout layout;
  bool transposed_blocks = false;  // blocks lie transposed in memory
  const void* values = nullptr;    // [batch, nnz, block, block], contiguous
  HeadMatrices b;                  // [batch, heads, block_columns * block, width], columns contiguous
  void* out = nullptr;             // [batch, heads, block_rows * block, width], contiguous
};

// Over the stored elements of each row of elements: s = scale * x + bias, of those columns up to the row's number where
// causal; y = exp(s - max(s)) / sum(exp(s - max(s))), 0 for hidden elements and for rows that see nothing.
struct BlockSoftmaxFwdParams {
  DType dtype = DType::kFloat32;
  int64_t batch = 0;
  BlockLayout layout;
  double scale = 1;
  bool causal = false;
  const void* values = nullptr;  // [batch, nnz, block, block], contiguous, as is the result
  HeadMatrices bias;             // [batch, heads, block_rows * block, block_columns * block]; no data: none. Any column
                                 // stride
  void* out = nullptr;
};

// From the result alone: ds = y * (dy - sum(dy * y)); dx = scale * ds.
struct BlockSoftmaxBwdParams {
  DType dtype = DType::kFloat32;
  int64_t batch = 0;
  BlockLayout layout;
  double scale = 1;
  const void* out = nullptr;
  const void* dout = nullptr;
  void* dx = nullptr;
};

}  // namespace xformers
