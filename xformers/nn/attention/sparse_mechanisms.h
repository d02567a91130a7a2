// Attention mechanisms that see a part of the keys, as modules under the names and options of the Python ones.
#pragma once

#include <torch/nn/pimpl.h>

#include "xformers/nn/attention/attention.h"
#include "xformers/nn/registry/option_map.h"

namespace xformers::nn {

// "local"
struct LocalOptions {
  double dropout = 0;
  bool causal = false;
  int64_t window_size = 5;
  bool force_sparsity = false;  // no effect: nothing but the band is ever computed
  static constexpr auto fields() {
    using O = LocalOptions;
    return std::tuple{field("dropout", &O::dropout), field("causal", &O::causal), field("window_size", &O::window_size),
                      field("force_sparsity", &O::force_sparsity)};
  }
};
class LocalAttentionImpl : public AttentionModule<LocalAttentionImpl, LocalOptions> {
 public:
  explicit LocalAttentionImpl(const LocalOptions& options = {});
  using Attention::forward;
  at::Tensor forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const functional::Masks& masks) override;
};
TORCH_MODULE(LocalAttention);

// "global"
struct GlobalOptions {
  double dropout = 0;
  at::Tensor attention_query_mask{};  // which tokens are global: bool [seqlen] or [seqlen, 1]
  bool causal = false;
  bool force_sparsity = false;  // no effect
  static constexpr auto fields() {
    using O = GlobalOptions;
    return std::tuple{field("dropout", &O::dropout), field("attention_query_mask", &O::attention_query_mask),
                      field("causal", &O::causal), field("force_sparsity", &O::force_sparsity)};
  }
};
class GlobalAttentionImpl : public AttentionModule<GlobalAttentionImpl, GlobalOptions> {
 public:
  explicit GlobalAttentionImpl(const GlobalOptions& options);
  using Attention::forward;
  at::Tensor forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const functional::Masks& masks) override;

  at::Tensor global_tokens;  // int64, ascending; in no state dict
};
TORCH_MODULE(GlobalAttention);

// "random"
struct RandomOptions {
  double dropout = 0;
  bool causal = false;
  double r = 0.01;  // the share of keys that a query sees
  bool constant_masking = true, force_sparsity = false;
  static constexpr auto fields() {
    using O = RandomOptions;
    return std::tuple{field("dropout", &O::dropout), field("causal", &O::causal), field("r", &O::r),
                      field("constant_masking", &O::constant_masking), field("force_sparsity", &O::force_sparsity)};
  }
};
class RandomAttentionImpl : public AttentionModule<RandomAttentionImpl, RandomOptions> {
 public:
  explicit RandomAttentionImpl(const RandomOptions& options = {});
  using Attention::forward;
  at::Tensor forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const functional::Masks& masks) override;

  at::Tensor rand_attention_mask;  // bool [n, n], drawn at the first call; in no state dict
};
TORCH_MODULE(RandomAttention);

// "blocksparse"
struct BlockSparseOptions {
  double dropout = 0;
  at::Tensor layout{};  // [heads, rows, columns] or [rows, columns], not 0: visible
  int64_t block_size = 16, num_heads = 1;
  bool causal = false;  // j <= i too
  static constexpr auto fields() {
    using O = BlockSparseOptions;
    return std::tuple{field("dropout", &O::dropout), field("layout", &O::layout), field("block_size", &O::block_size),
                      field("num_heads", &O::num_heads), field("causal", &O::causal)};
  }
};
class BlockSparseAttentionImpl : public AttentionModule<BlockSparseAttentionImpl, BlockSparseOptions> {
 public:
  explicit BlockSparseAttentionImpl(const BlockSparseOptions& options);
  using Attention::forward;
  at::Tensor forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const functional::Masks& masks) override;

  ops::BlockLists blocks;
};
TORCH_MODULE(BlockSparseAttention);

}  // namespace xformers::nn
