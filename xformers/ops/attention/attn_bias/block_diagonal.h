// Packed sequences (batch 1): queries and keys of all sequences lie one after the other, and every query sees keys of
// its own sequence only.
#pragma once

#include <tuple>

#include "xformers/ops/attention/attn_bias/lowered_bias.h"
#include "xformers/ops/attention/attn_bias/seq_info.h"

namespace xformers::ops {

// xformers::Error where the band hides every key from a query: causal from the bottom-right corner with fewer keys than
// queries in a block, or a window that ends before the last queries.
void check_blocks(at::IntArrayRef seqstart_q, at::IntArrayRef seqstart_k, const MaskBand& band);

struct BlockDiagonalCausalMask;
struct BlockDiagonalCausalFromBottomRightMask;
struct BlockDiagonalCausalLocalAttentionMask;
struct BlockDiagonalCausalLocalAttentionFromBottomRightMask;

// All keys of the sequence. The other classes are this one with a band inside each sequence.
struct BlockDiagonalMask {
  static BlockDiagonalMask from_seqlens(at::IntArrayRef q_seqlen, at::OptionalIntArrayRef kv_seqlen = std::nullopt,
                                        std::optional<at::Device> device = std::nullopt);
  // tensors [batch_i, seqlen_i, *] -> the mask and their concatenation [1, sum of batch_i * seqlen_i, *]
  static std::pair<BlockDiagonalMask, at::Tensor> from_tensor_list(at::TensorList tensors);
  // The same for queries and keys of different lengths: (mask, queries, keys, values; undefined without values)
  static std::tuple<BlockDiagonalMask, at::Tensor, at::Tensor, at::Tensor> from_tensor_lists_qkv(
      at::TensorList queries, at::TensorList keys, at::TensorList values = {});

  // The inverse of the concatenation.
  std::vector<at::Tensor> split_queries(const at::Tensor& x) const { return q_seqinfo.split(x, batch_sizes); }
  std::vector<at::Tensor> split_kv(const at::Tensor& x) const { return k_seqinfo.split(x, batch_sizes); }
  std::vector<at::Tensor> split(const at::Tensor& x) const;  // only where queries and keys have the same lengths

  BlockDiagonalCausalMask make_causal() const;
  BlockDiagonalCausalFromBottomRightMask make_causal_from_bottomright() const;
  BlockDiagonalCausalLocalAttentionMask make_local_attention(int64_t window_size) const;  // causal too
  BlockDiagonalCausalLocalAttentionFromBottomRightMask make_local_attention_from_bottomright(int64_t window_size) const;

  BlockDiagonalMask to(at::Device device) const;
  // `sizes` is [..., total queries, total keys]
  at::Tensor materialize(at::IntArrayRef sizes, at::ScalarType dtype = at::kFloat, at::Device device = at::kCPU) const;

  SeqLenInfo q_seqinfo, k_seqinfo;
  std::vector<int64_t> batch_sizes;  // runs of sequences that split() puts together

  at::Tensor scores{};  // what with_bias adds

  // What a class adds to this one.
  const char* name = "BlockDiagonalMask";
  MaskBand band = kFullBand;
};

// What the classes with a band have of their own: factories and to() that return them.
template <class Mask>
struct BlockDiagonalBand : BlockDiagonalMask {
  BlockDiagonalBand(const BlockDiagonalMask& blocks, const char* class_name, const MaskBand& class_band)
      : BlockDiagonalMask(blocks) {
    name = class_name;
    band = class_band;
    check_blocks(q_seqinfo.seqstart_host, k_seqinfo.seqstart_host, band);
  }
  static Mask from_seqlens(at::IntArrayRef q_seqlen, at::OptionalIntArrayRef kv_seqlen = std::nullopt,
                           std::optional<at::Device> device = std::nullopt) {
    return Mask(BlockDiagonalMask::from_seqlens(q_seqlen, kv_seqlen, device));
  }
  static std::pair<Mask, at::Tensor> from_tensor_list(at::TensorList tensors) {
    auto [blocks, packed] = BlockDiagonalMask::from_tensor_list(tensors);
    return {Mask(blocks), packed};
  }
  static std::tuple<Mask, at::Tensor, at::Tensor, at::Tensor> from_tensor_lists_qkv(at::TensorList queries,
                                                                                    at::TensorList keys,
                                                                                    at::TensorList values = {}) {
    auto [blocks, query, key, value] = BlockDiagonalMask::from_tensor_lists_qkv(queries, keys, values);
    return {Mask(blocks), query, key, value};
  }
  Mask to(at::Device device) const {
    Mask moved = static_cast<const Mask&>(*this);
    static_cast<BlockDiagonalMask&>(moved) = BlockDiagonalMask::to(device);
    return moved;
  }
};

// j <= i
struct BlockDiagonalCausalMask : BlockDiagonalBand<BlockDiagonalCausalMask> {
  explicit BlockDiagonalCausalMask(const BlockDiagonalMask& blocks);
};

// j <= i + d; no sequence may have fewer keys than queries.
struct BlockDiagonalCausalFromBottomRightMask : BlockDiagonalBand<BlockDiagonalCausalFromBottomRightMask> {
  explicit BlockDiagonalCausalFromBottomRightMask(const BlockDiagonalMask& blocks);
};

// i - window_size < j <= i; every query must see a key. Made by make_local_attention.
struct BlockDiagonalCausalLocalAttentionMask : BlockDiagonalBand<BlockDiagonalCausalLocalAttentionMask> {
  BlockDiagonalCausalLocalAttentionMask(const BlockDiagonalMask& blocks, int64_t window_size);
  static BlockDiagonalCausalLocalAttentionMask from_seqlens(at::IntArrayRef q_seqlen, at::OptionalIntArrayRef kv_seqlen,
                                                            int64_t window_size,
                                                            std::optional<at::Device> device = std::nullopt);
};

// i + d - window_size < j <= i + d; no sequence may have fewer keys than queries.
struct BlockDiagonalCausalLocalAttentionFromBottomRightMask
    : BlockDiagonalBand<BlockDiagonalCausalLocalAttentionFromBottomRightMask> {
  BlockDiagonalCausalLocalAttentionFromBottomRightMask(const BlockDiagonalMask& blocks, int64_t window_size);
  static BlockDiagonalCausalLocalAttentionFromBottomRightMask from_seqlens(
      at::IntArrayRef q_seqlen, at::OptionalIntArrayRef kv_seqlen, int64_t window_size,
      std::optional<at::Device> device = std::nullopt);
};

LoweredBias lower(const BlockDiagonalMask& bias);  // of all of them

}  // namespace xformers::ops
