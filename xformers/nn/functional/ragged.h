// Sequences of different lengths, one behind the other in one tensor, without padding.
#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>
#include <vector>

namespace xformers::nn::functional {

// x [sum of lengths, dim] -> [sequences, longest, dim], zeros behind each sequence.
at::Tensor ragged_to_padded(const at::Tensor& x, at::IntArrayRef lengths);

// Scores q k^T of every sequence, [sequences, longest of queries, longest of keys], zeros outside: one product per
// sequence, of its own tokens alone. query [sum of lengths_q, dim], key [sum of lengths_k, dim].
at::Tensor ragged_scores(const at::Tensor& query, const at::Tensor& key, at::IntArrayRef lengths_q,
                         at::IntArrayRef lengths_k);

// Attention within every sequence, q [sum of lengths_q, heads, head_dim], k and v [sum of lengths_k, heads,
// head_dim(_v)]: one call of the attention operator on the tokens where they are. causal: the last query sees every
// key.
at::Tensor ragged_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, at::IntArrayRef lengths_q,
                            at::IntArrayRef lengths_k, bool causal);

// The blocks of scores that hold real tokens, sequence by sequence, rows of blocks within: offsets of the block's first
// query and key in the packed tensors, the block's row and column, its sequence; int64 [blocks] each.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> ragged_block_table(at::IntArrayRef lengths_q,
                                                                                          at::IntArrayRef lengths_k,
                                                                                          int64_t block_q,
                                                                                          int64_t block_k);

}  // namespace xformers::nn::functional
