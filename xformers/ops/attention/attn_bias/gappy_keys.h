// Packed queries against keys anywhere: those of sequence b are seqstart[b] + [0, seqlen[b]). Ranges may overlap, come
// in any order and leave gaps.
#pragma once

#include "xformers/ops/attention/attn_bias/lowered_bias.h"
#include "xformers/ops/attention/attn_bias/seq_info.h"

namespace xformers::ops {

struct PagedBlockDiagonalGappyKeysMask;

// All keys of the range.
struct BlockDiagonalGappyKeysMask {
  // kv_seqstarts: one per sequence, then the total length of the keys.
  static BlockDiagonalGappyKeysMask from_seqlens(at::IntArrayRef q_seqlen, at::IntArrayRef kv_seqstarts,
                                                 at::IntArrayRef kv_seqlen,
                                                 std::optional<at::Device> device = std::nullopt);
  // The same keys in pages, where sequence b had its own space from b * notional_padding on.
  PagedBlockDiagonalGappyKeysMask make_paged(const at::Tensor& block_tables, int64_t page_size,
                                             int64_t notional_padding) const;

  BlockDiagonalGappyKeysMask to(at::Device device) const;
  // `sizes` is [..., total queries, total keys]
  at::Tensor materialize(at::IntArrayRef sizes, at::ScalarType dtype = at::kFloat, at::Device device = at::kCPU) const;

  SeqLenInfo q_seqinfo;
  GappySeqInfo k_seqinfo;

  at::Tensor scores{};  // what with_bias adds

  // What a class adds to this one.
  const char* name = "BlockDiagonalGappyKeysMask";
  MaskBand band = kFullBand;
};

// j <= i + d: the last query of a sequence sees its whole range.
struct BlockDiagonalCausalWithOffsetGappyKeysMask : BlockDiagonalGappyKeysMask {
  explicit BlockDiagonalCausalWithOffsetGappyKeysMask(const BlockDiagonalGappyKeysMask& keys);
  static BlockDiagonalCausalWithOffsetGappyKeysMask from_seqlens(at::IntArrayRef q_seqlen, at::IntArrayRef kv_seqstarts,
                                                                 at::IntArrayRef kv_seqlen,
                                                                 std::optional<at::Device> device = std::nullopt);
  void make_paged(const at::Tensor& block_tables, int64_t page_size,
                  int64_t notional_padding) const = delete;  // would lose causality
  BlockDiagonalCausalWithOffsetGappyKeysMask to(at::Device device) const;
};

LoweredBias lower(const BlockDiagonalGappyKeysMask& bias);  // of both

// Starts counted from b * notional_padding -> counted in each sequence's own pages. xformers::Error unless they lie
// there.
std::vector<int64_t> starts_in_pages(at::IntArrayRef seqstart, at::IntArrayRef seqlen, const at::Tensor& block_tables,
                                     int64_t page_size, int64_t notional_padding);

}  // namespace xformers::ops
