// Attention over the visible blocks of the score matrix (attn_bias/block_sparse.h), beside masks of the user's: the
// other blocks are never computed, forward or backward.
#pragma once

#include "xformers/ops/attention/attn_bias/lowered_bias.h"
#include "xformers/ops/common/operator.h"

namespace xformers::nn::functional {

struct BlockSparseAttentionArgs {
  static constexpr const char* kName = "block_sparse_attention";
  using Result = at::Tensor;
  at::Tensor q, k, v;  // [batch, seqlen, heads, head_dim] or, heads folded, [batch * heads, seqlen, head_dim]
  at::Tensor block_key_offsets, block_keys, block_query_offsets, block_queries;  // of ops::BlockLists
  ops::OptionalTensor block_bits_of{}, block_bits{};
  int64_t block_q = 0, block_k = 0;
  ops::OptionalTensor att_mask{}, key_padding_mask{};  // functional/attend.h, beside the blocks
  bool causal = false;                                 // j <= i too
  std::optional<double> scale{};                       // of the scores; head_dim^-0.5 by default
  double p = 0;                                        // of dropping a weight

  static constexpr auto arguments() {
    using A = BlockSparseAttentionArgs;
    return std::tuple{ops::arg("q", &A::q),
                      ops::arg("k", &A::k),
                      ops::arg("v", &A::v),
                      ops::arg("block_key_offsets", &A::block_key_offsets),
                      ops::arg("block_keys", &A::block_keys),
                      ops::arg("block_query_offsets", &A::block_query_offsets),
                      ops::arg("block_queries", &A::block_queries),
                      ops::arg("block_bits_of", &A::block_bits_of).required(),
                      ops::arg("block_bits", &A::block_bits).required(),
                      ops::arg("block_q", &A::block_q).required(),
                      ops::arg("block_k", &A::block_k).required(),
                      ops::arg("att_mask", &A::att_mask),
                      ops::arg("key_padding_mask", &A::key_padding_mask),
                      ops::arg("causal", &A::causal),
                      ops::arg("scale", &A::scale),
                      ops::arg("p", &A::p)};
  }
};

// In q's layout; a row that sees nothing is 0.
at::Tensor block_sparse_attention(const BlockSparseAttentionArgs& args);

}  // namespace xformers::nn::functional
