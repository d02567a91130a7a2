#include "xformers/ops/attention/attn_bias/paged.h"

#include <algorithm>
#include <limits>

#include "xformers/ops/attention/attn_bias/bias_error.h"
#include "xformers/ops/common/check.h"

namespace xformers::ops {
namespace {

template <class Mask>
Mask moved_paged(Mask mask, at::Device device) {
  mask.q_seqinfo = mask.q_seqinfo.to(device);
  mask.k_seqinfo = mask.k_seqinfo.to(device);
  if (mask.scores.defined()) mask.scores = mask.scores.to(device);
  mask.block_tables = mask.block_tables.to(device, /*non_blocking=*/true);
  return mask;
}

}  // namespace

PagedBlockDiagonalPaddedKeysMask PagedBlockDiagonalPaddedKeysMask::from_seqlens(at::IntArrayRef q_seqlen,
                                                                                at::IntArrayRef kv_seqlen,
                                                                                const at::Tensor& block_tables,
                                                                                int64_t page_size,
                                                                                std::optional<at::Device> device) {
  check_same_count(q_seqlen.size(), kv_seqlen.size());
  check_block_tables(block_tables, page_size, kv_seqlen);
  const at::Device where = device.value_or(block_tables.device());
  return {.q_seqinfo = SeqLenInfo::from_seqlens(q_seqlen, where),
          .k_seqinfo = PaddedSeqLenInfo::from_seqlens_padded(kv_seqlen, block_tables.size(1) * page_size, where),
          .block_tables = block_tables,
          .page_size = page_size};
}

PagedBlockDiagonalPaddedKeysMask PagedBlockDiagonalPaddedKeysMask::to(at::Device device) const {
  return moved_paged(*this, device);
}

at::Tensor PagedBlockDiagonalPaddedKeysMask::materialize(at::IntArrayRef sizes, at::ScalarType dtype,
                                                         at::Device device) const {
  return ops::materialize(lower(*this), sizes, dtype, device);
}

PagedBlockDiagonalCausalWithOffsetPaddedKeysMask::PagedBlockDiagonalCausalWithOffsetPaddedKeysMask(
    const PagedBlockDiagonalPaddedKeysMask& keys)
    : PagedBlockDiagonalPaddedKeysMask(keys) {
  name = "PagedBlockDiagonalCausalWithOffsetPaddedKeysMask";
  band = kCausalBottomRightBand;
}

PagedBlockDiagonalCausalWithOffsetPaddedKeysMask PagedBlockDiagonalCausalWithOffsetPaddedKeysMask::from_seqlens(
    at::IntArrayRef q_seqlen, at::IntArrayRef kv_seqlen, const at::Tensor& block_tables, int64_t page_size,
    std::optional<at::Device> device) {
  return PagedBlockDiagonalCausalWithOffsetPaddedKeysMask(
      PagedBlockDiagonalPaddedKeysMask::from_seqlens(q_seqlen, kv_seqlen, block_tables, page_size, device));
}

PagedBlockDiagonalCausalWithOffsetPaddedKeysMask PagedBlockDiagonalCausalWithOffsetPaddedKeysMask::to(
    at::Device device) const {
  return moved_paged(*this, device);
}

PagedBlockDiagonalGappyKeysMask PagedBlockDiagonalGappyKeysMask::from_seqlens(
    at::IntArrayRef q_seqlen, at::IntArrayRef kv_seqstarts, at::IntArrayRef kv_seqlen, const at::Tensor& block_tables,
    int64_t page_size, std::optional<at::Device> device) {
  check_same_count(q_seqlen.size(), kv_seqlen.size());
  const at::Device where = device.value_or(block_tables.device());
  PagedBlockDiagonalGappyKeysMask mask{
      .q_seqinfo = SeqLenInfo::from_seqlens(q_seqlen, where),
      .k_seqinfo = GappySeqInfo::from_seqlens_gappy(kv_seqstarts, kv_seqlen, /*paged=*/true, where),
      .block_tables = block_tables,
      .page_size = page_size};
  std::vector<int64_t> ends;
  for (size_t i = 0; i < kv_seqlen.size(); ++i) ends.push_back(kv_seqstarts[i] + kv_seqlen[i]);
  check_block_tables(block_tables, page_size, ends);
  return mask;
}

PagedBlockDiagonalGappyKeysMask PagedBlockDiagonalGappyKeysMask::to(at::Device device) const {
  return moved_paged(*this, device);
}

at::Tensor PagedBlockDiagonalGappyKeysMask::materialize(at::IntArrayRef sizes, at::ScalarType dtype,
                                                        at::Device device) const {
  return ops::materialize(lower(*this), sizes, dtype, device);
}

LoweredBias lower(const PagedBlockDiagonalPaddedKeysMask& bias) {
  LoweredBias lowered{.name = bias.name,
                      .scores = bias.scores,
                      .cu_seqlens_q = bias.q_seqinfo.seqstart,
                      .seqused_k = bias.k_seqinfo.seqlen,
                      .page_table = bias.block_tables,
                      .page_size = bias.page_size,
                      .device_given = bias.q_seqinfo.device_given,
                      .takes_3d = false};
  return lowered.with(bias.band);
}

LoweredBias lower(const PagedBlockDiagonalGappyKeysMask& bias) {
  return {.name = "PagedBlockDiagonalGappyKeysMask",
          .scores = bias.scores,
          .cu_seqlens_q = bias.q_seqinfo.seqstart,
          .cu_seqlens_k = bias.k_seqinfo.seqstart,
          .seqused_k = bias.k_seqinfo.seqlen,
          .page_table = bias.block_tables,
          .page_size = bias.page_size,
          .device_given = bias.q_seqinfo.device_given,
          .takes_3d = false};
}

void check_block_tables(const at::Tensor& block_tables, int64_t page_size, at::IntArrayRef ends) {
  if (page_size < 1 || page_size > std::numeric_limits<int32_t>::max()) {
    bias_error("page_size is " + std::to_string(page_size), page_size < 1 ? "1 or more" : "less than 2^31",
               "it is a page's number of keys");
  }
  if (!block_tables.defined() || block_tables.dim() != 2 || block_tables.size(0) != static_cast<int64_t>(ends.size())) {
    bias_error("block_tables has shape " + (block_tables.defined() ? c10::str(block_tables.sizes()) : "None"),
               "[" + std::to_string(ends.size()) + ", pages]", "give one row of page numbers per sequence");
  }
  if (block_tables.scalar_type() != at::kInt) {
    bias_error(std::string("block_tables.dtype is ") + describe_dtype(block_tables.scalar_type()), "int32",
               "convert block_tables with to()");
  }
  const int64_t room = block_tables.size(1) * page_size;
  for (const int64_t end : ends) {
    if (end > room) {
      bias_error("the longest sequence of keys is " + std::to_string(*std::max_element(ends.begin(), ends.end())),
                 "at most " + std::to_string(room) + ", what a row of block_tables holds", "give more pages");
    }
  }
}

}  // namespace xformers::ops
