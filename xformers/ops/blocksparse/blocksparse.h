// Products and softmax of block-sparse matrices: [batch, heads] matrices of square blocks, of which a layout per head
// says which are stored. The operators of block-sparse attention before it was fused, "Generating Long Sequences with
// Sparse Transformers" (Child et al., arXiv:1904.10509).
//
// Stored blocks are [batch, nnz, block, block] in the order head, row, column; dense matrices [batch, heads, rows,
// columns] with any strides. One dtype, fp32, fp64, bf16 or fp16; sums are fp32 (fp64 for fp64), rounded once. block: a
// multiple of 16. xformers::Error where sizes do not fit or a layout leaves its matrix.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "xformers/kernels/base/error.h"

namespace xformers::ops {

// int32 tables of a layout: by rows of blocks of all heads, columns counted within a head; and by columns.
struct BlockTables {
  at::Tensor row_offsets;       // [heads * block_rows + 1]
  at::Tensor column_indices;    // [nnz]
  at::Tensor row_offsets_t;     // [heads * block_columns + 1]
  at::Tensor column_indices_t;  // [nnz]: rows
  at::Tensor perm;              // [nnz]: block i of the order by columns is stored at perm[i]
};

// layout [heads, block_rows, block_columns], bool or integers: non-zero is stored. On its device, which it waits for.
BlockTables block_tables(const at::Tensor& layout);

// The same where the tables by rows are known.
BlockTables transpose_blocks(const at::Tensor& row_offsets, const at::Tensor& column_indices, int64_t heads,
                             int64_t block_columns);

// a [batch, heads, m, k], b [batch, heads, k, n] -> a b at the layout's blocks. Differentiable, twice.
at::Tensor block_sdd(const at::Tensor& a, const at::Tensor& b, const BlockTables& layout, int64_t block);

// The sparse matrix, or its transpose, times b [batch, heads, k, n] -> [batch, heads, m, n]. Differentiable, twice.
at::Tensor block_dsd(const at::Tensor& values, const at::Tensor& b, const BlockTables& layout, int64_t m,
                     bool transposed = false);

// What is added to the scores beside their scale; each broadcasts to [batch, heads, m, n].
struct BlockMasks {
  std::optional<at::Tensor> rel_logits = std::nullopt;        // added, differentiable
  std::optional<at::Tensor> attn_mask = std::nullopt;         // bool (True: visible) or added
  std::optional<at::Tensor> key_padding_mask = std::nullopt;  // [batch, n], bool or added
  bool causal = false;                                        // element (i, j) is seen where j <= i
};

// softmax(scale * values + masks) over the stored elements of each row; rows that see nothing are 0. n: columns.
at::Tensor block_softmax(const at::Tensor& values, const BlockTables& layout, int64_t heads, int64_t n,
                         double scale = 1, const BlockMasks& masks = {});

// [batch, heads, m, n] with zeros elsewhere. Differentiable.
at::Tensor block_to_dense(const at::Tensor& values, const BlockTables& layout, int64_t heads, int64_t n);

}  // namespace xformers::ops
