// Packed queries against a cache of keys with one slot of `padding` positions per sequence, of which the first
// seqlen[b] are in use; the rest is never read.
#pragma once

#include "xformers/ops/attention/attn_bias/lowered_bias.h"
#include "xformers/ops/attention/attn_bias/seq_info.h"

namespace xformers::ops {

struct PagedBlockDiagonalPaddedKeysMask;
struct PagedBlockDiagonalCausalWithOffsetPaddedKeysMask;

// All keys in use. The other classes are this one with a band inside each sequence.
struct BlockDiagonalPaddedKeysMask {
  static BlockDiagonalPaddedKeysMask from_seqlens(at::IntArrayRef q_seqlen, int64_t kv_padding,
                                                  at::IntArrayRef kv_seqlen,
                                                  std::optional<at::Device> device = std::nullopt);
  // The same keys in pages of `page_size`: block_tables int32 [sequences, max_pages].
  PagedBlockDiagonalPaddedKeysMask make_paged(const at::Tensor& block_tables, int64_t page_size) const;

  BlockDiagonalPaddedKeysMask to(at::Device device) const;
  // `sizes` is [..., total queries, sequences * padding]
  at::Tensor materialize(at::IntArrayRef sizes, at::ScalarType dtype = at::kFloat, at::Device device = at::kCPU) const;

  SeqLenInfo q_seqinfo;
  PaddedSeqLenInfo k_seqinfo;

  at::Tensor scores{};  // what with_bias adds

  // What a class adds to this one.
  const char* name = "BlockDiagonalPaddedKeysMask";
  MaskBand band = kFullBand;
};

// j <= i + d: the last query of a sequence sees all its keys.
struct BlockDiagonalCausalWithOffsetPaddedKeysMask : BlockDiagonalPaddedKeysMask {
  explicit BlockDiagonalCausalWithOffsetPaddedKeysMask(const BlockDiagonalPaddedKeysMask& keys);
  static BlockDiagonalCausalWithOffsetPaddedKeysMask from_seqlens(at::IntArrayRef q_seqlen, int64_t kv_padding,
                                                                  at::IntArrayRef kv_seqlen,
                                                                  std::optional<at::Device> device = std::nullopt);
  PagedBlockDiagonalCausalWithOffsetPaddedKeysMask make_paged(const at::Tensor& block_tables, int64_t page_size) const;
  BlockDiagonalCausalWithOffsetPaddedKeysMask to(at::Device device) const;
};

// i + d - window_size < j <= i + d
struct BlockDiagonalCausalLocalAttentionPaddedKeysMask : BlockDiagonalPaddedKeysMask {
  BlockDiagonalCausalLocalAttentionPaddedKeysMask(const BlockDiagonalPaddedKeysMask& keys, int64_t window_size);
  static BlockDiagonalCausalLocalAttentionPaddedKeysMask from_seqlens_local(
      at::IntArrayRef q_seqlen, int64_t kv_padding, at::IntArrayRef kv_seqlen, int64_t window_size,
      std::optional<at::Device> device = std::nullopt);
  void make_paged(const at::Tensor& block_tables, int64_t page_size) const = delete;  // would lose the window
  BlockDiagonalCausalLocalAttentionPaddedKeysMask to(at::Device device) const;
};

LoweredBias lower(const BlockDiagonalPaddedKeysMask& bias);  // of all of them

}  // namespace xformers::ops
