#include "xformers/nn/functional/block_sparse_attention.h"

#include "xformers/nn/functional/attend.h"

namespace xformers::nn::functional {

at::Tensor block_sparse_attention(const BlockSparseAttentionArgs& args) {
  const ops::Check check(args.kName);
  const Heads heads(check, args.q, args.k, args.v);
  const ops::BlockLists blocks{.key_offsets = args.block_key_offsets,
                               .key_blocks = args.block_keys,
                               .query_offsets = args.block_query_offsets,
                               .query_blocks = args.block_queries,
                               .bits_of = args.block_bits_of.value_or(at::Tensor()),
                               .bits = args.block_bits.value_or(at::Tensor()),
                               .block_q = args.block_q,
                               .block_k = args.block_k};
  return attend(
      check, heads,
      {.att_mask = args.att_mask, .key_padding_mask = args.key_padding_mask, .causal = args.causal, .blocks = blocks},
      args.p, args.scale);
}

}  // namespace xformers::nn::functional

TORCH_LIBRARY_FRAGMENT(xformers, m) { xformers::ops::define<xformers::nn::functional::BlockSparseAttentionArgs>(m); }
TORCH_LIBRARY_IMPL(xformers, CompositeImplicitAutograd, m) {
  xformers::ops::implement<xformers::nn::functional::block_sparse_attention>(m);
}
