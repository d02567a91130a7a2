#include "xformers/nn/attention/sparse_mechanisms.h"

#include "xformers/nn/functional/attention_patterns.h"
#include "xformers/nn/functional/local_attention.h"
#include "xformers/nn/functional/pattern_attention.h"
#include "xformers/nn/functional/scaled_dot_product.h"
#include "xformers/ops/attention/attn_bias/block_sparse.h"

namespace xformers::nn {

LocalAttentionImpl::LocalAttentionImpl(const LocalOptions& options_arg) : AttentionModule(options_arg) {
  functional::check_window(options.window_size, options.causal);
  flags.requires_same_k_q_dimensions = true;
}

at::Tensor LocalAttentionImpl::forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                       const functional::Masks& masks) {
  return functional::local_attention(
      {q, k, v, masks.att_mask, masks.key_padding_mask, options.window_size, options.causal, masks.causal, dropout()});
}

GlobalAttentionImpl::GlobalAttentionImpl(const GlobalOptions& options_arg) : AttentionModule(options_arg) {
  const at::Tensor& mask = options.attention_query_mask;
  if (!mask.defined() || mask.scalar_type() != at::kBool || mask.dim() < 1 || mask.numel() != mask.size(0) ||
      mask.size(0) < 2) {
    ops::Check("global").fail("attention_query_mask", ops::describe(ops::to_optional(mask)),
                              "a bool tensor [seqlen, 1] of more than one token", "give one flag per token");
  }
  global_tokens = mask.flatten().nonzero().flatten();
  flags.requires_same_k_q_dimensions = true;
  flags.supports_attention_mask = false;
}

at::Tensor GlobalAttentionImpl::forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                        const functional::Masks& masks) {
  global_tokens = global_tokens.to(q.device());
  return functional::global_attention({q, k, v, global_tokens, options.attention_query_mask.size(0),
                                       options.causal || masks.causal, masks.att_mask, dropout()});
}

RandomAttentionImpl::RandomAttentionImpl(const RandomOptions& options_arg) : AttentionModule(options_arg) {
  if (!(options.r > 0 && options.r <= 1)) {
    ops::Check("random").fail("r", std::to_string(options.r), "a number above 0, at most 1", "it is the share of keys");
  }
  flags.requires_same_k_q_dimensions = true;
}

at::Tensor RandomAttentionImpl::forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                        const functional::Masks& masks) {
  if (options.r == 1) {
    return functional::scaled_dot_product(
        {q, k, v, masks.att_mask, masks.key_padding_mask, options.causal || masks.causal, dropout()});
  }
  at::Tensor& pattern = rand_attention_mask;
  if (!pattern.defined() || !options.constant_masking || q.size(1) > pattern.size(0)) {
    pattern = functional::random_pattern(q.size(1), 1 - options.r, {}, q.device());
  }
  return functional::pattern_attention({q, k, v, pattern.to(q.device()), masks.att_mask, masks.key_padding_mask,
                                        options.causal || masks.causal, dropout()});
}

BlockSparseAttentionImpl::BlockSparseAttentionImpl(const BlockSparseOptions& options_arg)
    : AttentionModule(options_arg) {
  const ops::Check check("blocksparse");
  if (!options.layout.defined()) {
    check.fail("layout", "None", "[heads, rows, columns]", "make one by a sparsity_config");
  }
  blocks = ops::BlockSparseMask(options.layout.ne(0), options.block_size).lists;
}

at::Tensor BlockSparseAttentionImpl::forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                             const functional::Masks& masks) {
  functional::Masks all = masks;
  all.blocks = blocks;
  all.causal = options.causal || masks.causal;
  const ops::Check check("blocksparse");
  return functional::attend(check, functional::Heads(check, q, k, v), all, dropout());
}

}  // namespace xformers::nn
