// Tensors of different lengths as packed sequences.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace xformers::ops {

// Tensors [batch_i, seqlen_i, *], one sequence per batch row, one after the other: [1, sum of batch_i * seqlen_i, *].
// xformers::Error without tensors, or where one has less than two dimensions.
at::Tensor concatenate_sequences(at::TensorList tensors);
std::vector<int64_t> batch_sizes_of(at::TensorList tensors);  // batch_i
std::vector<int64_t> seqlens_of(at::TensorList tensors);      // of every row of every tensor

// xformers::Error unless keys have the queries' batch sizes, and values, where there are any, the keys' sizes.
void check_lists(at::TensorList queries, at::TensorList keys, at::TensorList values);

}  // namespace xformers::ops
