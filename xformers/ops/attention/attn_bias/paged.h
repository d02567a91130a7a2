// Packed queries against keys in pages: logical key t of sequence b is row
//   block_tables[b, t / page_size] * page_size + t % page_size
// of key and value, [1, num_pages * page_size, ...]. Pages may be shared between sequences, in any order.
#pragma once

#include "xformers/ops/attention/attn_bias/gappy_keys.h"
#include "xformers/ops/attention/attn_bias/padded_keys.h"

namespace xformers::ops {

// The keys [0, seqlen[b]) of each sequence.
struct PagedBlockDiagonalPaddedKeysMask {
  // Without a device: on that of block_tables.
  static PagedBlockDiagonalPaddedKeysMask from_seqlens(at::IntArrayRef q_seqlen, at::IntArrayRef kv_seqlen,
                                                       const at::Tensor& block_tables, int64_t page_size,
                                                       std::optional<at::Device> device = std::nullopt);
  PagedBlockDiagonalPaddedKeysMask to(at::Device device) const;
  // `sizes` is [..., total queries, sequences * max_pages * page_size], the logical keys; the result has the physical
  // ones, (largest page + 1) * page_size.
  at::Tensor materialize(at::IntArrayRef sizes, at::ScalarType dtype = at::kFloat, at::Device device = at::kCPU) const;

  SeqLenInfo q_seqinfo;
  PaddedSeqLenInfo k_seqinfo;  // padding: max_pages * page_size
  at::Tensor block_tables;     // int32 [sequences, max_pages]
  int64_t page_size = 0;

  at::Tensor scores{};  // what with_bias adds

  // What a class adds to this one.
  const char* name = "PagedBlockDiagonalPaddedKeysMask";
  MaskBand band = kFullBand;
};

// j <= i + d
struct PagedBlockDiagonalCausalWithOffsetPaddedKeysMask : PagedBlockDiagonalPaddedKeysMask {
  explicit PagedBlockDiagonalCausalWithOffsetPaddedKeysMask(const PagedBlockDiagonalPaddedKeysMask& keys);
  static PagedBlockDiagonalCausalWithOffsetPaddedKeysMask from_seqlens(at::IntArrayRef q_seqlen,
                                                                       at::IntArrayRef kv_seqlen,
                                                                       const at::Tensor& block_tables,
                                                                       int64_t page_size,
                                                                       std::optional<at::Device> device = std::nullopt);
  PagedBlockDiagonalCausalWithOffsetPaddedKeysMask to(at::Device device) const;
};

// The keys kv_seqstarts[b] + [0, seqlen[b]), counted in the sequence's own pages.
struct PagedBlockDiagonalGappyKeysMask {
  static PagedBlockDiagonalGappyKeysMask from_seqlens(at::IntArrayRef q_seqlen, at::IntArrayRef kv_seqstarts,
                                                      at::IntArrayRef kv_seqlen, const at::Tensor& block_tables,
                                                      int64_t page_size,
                                                      std::optional<at::Device> device = std::nullopt);
  PagedBlockDiagonalGappyKeysMask to(at::Device device) const;
  at::Tensor materialize(at::IntArrayRef sizes, at::ScalarType dtype = at::kFloat, at::Device device = at::kCPU) const;

  SeqLenInfo q_seqinfo;
  GappySeqInfo k_seqinfo;
  at::Tensor block_tables;  // int32 [sequences, max_pages]
  int64_t page_size = 0;
  at::Tensor scores{};  // what with_bias adds
};

LoweredBias lower(const PagedBlockDiagonalPaddedKeysMask& bias);  // of both
LoweredBias lower(const PagedBlockDiagonalGappyKeysMask& bias);

// xformers::Error unless block_tables is int32 [sequences, max_pages] and its pages hold the keys [0, ends[b]) of every
// sequence. Reads no page number, so waits for no device.
void check_block_tables(const at::Tensor& block_tables, int64_t page_size, at::IntArrayRef ends);

}  // namespace xformers::ops
