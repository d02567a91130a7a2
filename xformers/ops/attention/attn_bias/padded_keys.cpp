#include "xformers/ops/attention/attn_bias/padded_keys.h"

#include "xformers/ops/attention/attn_bias/paged.h"

namespace xformers::ops {
namespace {

template <class Mask>
Mask moved_padded(Mask mask, at::Device device) {
  mask.q_seqinfo = mask.q_seqinfo.to(device);
  mask.k_seqinfo = mask.k_seqinfo.to(device);
  if (mask.scores.defined()) mask.scores = mask.scores.to(device);
  return mask;
}

}  // namespace

BlockDiagonalPaddedKeysMask BlockDiagonalPaddedKeysMask::from_seqlens(at::IntArrayRef q_seqlen, int64_t kv_padding,
                                                                      at::IntArrayRef kv_seqlen,
                                                                      std::optional<at::Device> device) {
  check_same_count(q_seqlen.size(), kv_seqlen.size());
  return {.q_seqinfo = SeqLenInfo::from_seqlens(q_seqlen, device),
          .k_seqinfo = PaddedSeqLenInfo::from_seqlens_padded(kv_seqlen, kv_padding, device)};
}

PagedBlockDiagonalPaddedKeysMask BlockDiagonalPaddedKeysMask::make_paged(const at::Tensor& block_tables,
                                                                         int64_t page_size) const {
  check_block_tables(block_tables, page_size, k_seqinfo.seqlen_host);
  PagedBlockDiagonalPaddedKeysMask paged;
  paged.q_seqinfo = q_seqinfo;
  paged.k_seqinfo = k_seqinfo.with_padding(block_tables.size(1) * page_size);
  paged.block_tables = block_tables;
  paged.page_size = page_size;
  paged.scores = scores;
  return paged;
}

BlockDiagonalPaddedKeysMask BlockDiagonalPaddedKeysMask::to(at::Device device) const {
  return moved_padded(*this, device);
}

at::Tensor BlockDiagonalPaddedKeysMask::materialize(at::IntArrayRef sizes, at::ScalarType dtype,
                                                    at::Device device) const {
  return ops::materialize(lower(*this), sizes, dtype, device);
}

BlockDiagonalCausalWithOffsetPaddedKeysMask::BlockDiagonalCausalWithOffsetPaddedKeysMask(
    const BlockDiagonalPaddedKeysMask& keys)
    : BlockDiagonalPaddedKeysMask(keys) {
  name = "BlockDiagonalCausalWithOffsetPaddedKeysMask";
  band = kCausalBottomRightBand;
}

BlockDiagonalCausalWithOffsetPaddedKeysMask BlockDiagonalCausalWithOffsetPaddedKeysMask::from_seqlens(
    at::IntArrayRef q_seqlen, int64_t kv_padding, at::IntArrayRef kv_seqlen, std::optional<at::Device> device) {
  return BlockDiagonalCausalWithOffsetPaddedKeysMask(
      BlockDiagonalPaddedKeysMask::from_seqlens(q_seqlen, kv_padding, kv_seqlen, device));
}

PagedBlockDiagonalCausalWithOffsetPaddedKeysMask BlockDiagonalCausalWithOffsetPaddedKeysMask::make_paged(
    const at::Tensor& block_tables, int64_t page_size) const {
  return PagedBlockDiagonalCausalWithOffsetPaddedKeysMask(
      BlockDiagonalPaddedKeysMask::make_paged(block_tables, page_size));
}

BlockDiagonalCausalWithOffsetPaddedKeysMask BlockDiagonalCausalWithOffsetPaddedKeysMask::to(at::Device device) const {
  return moved_padded(*this, device);
}

BlockDiagonalCausalLocalAttentionPaddedKeysMask::BlockDiagonalCausalLocalAttentionPaddedKeysMask(
    const BlockDiagonalPaddedKeysMask& keys, int64_t window_size)
    : BlockDiagonalPaddedKeysMask(keys) {
  name = "BlockDiagonalCausalLocalAttentionPaddedKeysMask";
  band = causal_window_band(window_size, /*bottom_right=*/true);
}

BlockDiagonalCausalLocalAttentionPaddedKeysMask BlockDiagonalCausalLocalAttentionPaddedKeysMask::from_seqlens_local(
    at::IntArrayRef q_seqlen, int64_t kv_padding, at::IntArrayRef kv_seqlen, int64_t window_size,
    std::optional<at::Device> device) {
  return {BlockDiagonalPaddedKeysMask::from_seqlens(q_seqlen, kv_padding, kv_seqlen, device), window_size};
}

BlockDiagonalCausalLocalAttentionPaddedKeysMask BlockDiagonalCausalLocalAttentionPaddedKeysMask::to(
    at::Device device) const {
  return moved_padded(*this, device);
}

LoweredBias lower(const BlockDiagonalPaddedKeysMask& bias) {
  LoweredBias lowered{.name = bias.name,
                      .scores = bias.scores,
                      .cu_seqlens_q = bias.q_seqinfo.seqstart,
                      .cu_seqlens_k = bias.k_seqinfo.seqstart,
                      .seqused_k = bias.k_seqinfo.seqlen,
                      .device_given = bias.q_seqinfo.device_given,
                      .takes_3d = false};
  return lowered.with(bias.band);
}

}  // namespace xformers::ops
