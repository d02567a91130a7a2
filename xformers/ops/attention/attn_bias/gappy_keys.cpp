#include "xformers/ops/attention/attn_bias/gappy_keys.h"

#include <limits>

#include "xformers/ops/attention/attn_bias/bias_error.h"
#include "xformers/ops/attention/attn_bias/paged.h"

namespace xformers::ops {
namespace {

template <class Mask>
Mask moved_gappy(Mask mask, at::Device device) {
  mask.q_seqinfo = mask.q_seqinfo.to(device);
  mask.k_seqinfo = mask.k_seqinfo.to(device);
  if (mask.scores.defined()) mask.scores = mask.scores.to(device);
  return mask;
}

}  // namespace

BlockDiagonalGappyKeysMask BlockDiagonalGappyKeysMask::from_seqlens(at::IntArrayRef q_seqlen,
                                                                    at::IntArrayRef kv_seqstarts,
                                                                    at::IntArrayRef kv_seqlen,
                                                                    std::optional<at::Device> device) {
  check_same_count(q_seqlen.size(), kv_seqlen.size());
  return {.q_seqinfo = SeqLenInfo::from_seqlens(q_seqlen, device),
          .k_seqinfo = GappySeqInfo::from_seqlens_gappy(kv_seqstarts, kv_seqlen, /*paged=*/false, device)};
}

PagedBlockDiagonalGappyKeysMask BlockDiagonalGappyKeysMask::make_paged(const at::Tensor& block_tables,
                                                                       int64_t page_size,
                                                                       int64_t notional_padding) const {
  const std::vector<int64_t> starts =
      starts_in_pages(k_seqinfo.seqstart_host, k_seqinfo.seqlen_host, block_tables, page_size, notional_padding);
  PagedBlockDiagonalGappyKeysMask paged;
  paged.q_seqinfo = q_seqinfo;
  const std::optional<at::Device> device =
      k_seqinfo.device_given ? std::optional(k_seqinfo.seqlen.device()) : std::nullopt;
  paged.k_seqinfo = GappySeqInfo::from_seqlens_gappy(starts, k_seqinfo.seqlen_host, /*paged=*/true, device);
  paged.k_seqinfo.seqlen = k_seqinfo.seqlen;  // shared: attention follows what a decoding loop writes there
  paged.block_tables = block_tables;
  paged.page_size = page_size;
  paged.scores = scores;
  return paged;
}

std::vector<int64_t> starts_in_pages(at::IntArrayRef seqstart, at::IntArrayRef seqlen, const at::Tensor& block_tables,
                                     int64_t page_size, int64_t notional_padding) {
  if (notional_padding < 0 || notional_padding > std::numeric_limits<int32_t>::max()) {
    bias_error("notional_padding is " + std::to_string(notional_padding), "0 or more, and less than 2^31",
               "give the length of a sequence's own space");
  }
  check_block_tables(block_tables, page_size, std::vector<int64_t>(seqlen.size()));
  const int64_t room = block_tables.size(1) * page_size;
  std::vector<int64_t> starts;
  for (size_t i = 0; i < seqlen.size(); ++i) {
    const int64_t start = seqstart[i] - static_cast<int64_t>(i) * notional_padding, end = start + seqlen[i];
    if (start < 0 || end > room || (start == room && room > 0)) {
      bias_error("the keys of sequence " + std::to_string(i) + " are [" + std::to_string(start) + ", " +
                     std::to_string(end) + ") of its own pages",
                 "a range inside [0, " + std::to_string(room) + ")",
                 "notional_padding is the distance of the sequences here");
    }
    starts.push_back(start);
  }
  return starts;
}

BlockDiagonalGappyKeysMask BlockDiagonalGappyKeysMask::to(at::Device device) const {
  return moved_gappy(*this, device);
}

at::Tensor BlockDiagonalGappyKeysMask::materialize(at::IntArrayRef sizes, at::ScalarType dtype,
                                                   at::Device device) const {
  return ops::materialize(lower(*this), sizes, dtype, device, k_seqinfo.seqstart_host.back());
}

BlockDiagonalCausalWithOffsetGappyKeysMask::BlockDiagonalCausalWithOffsetGappyKeysMask(
    const BlockDiagonalGappyKeysMask& keys)
    : BlockDiagonalGappyKeysMask(keys) {
  name = "BlockDiagonalCausalWithOffsetGappyKeysMask";
  band = kCausalBottomRightBand;
}

BlockDiagonalCausalWithOffsetGappyKeysMask BlockDiagonalCausalWithOffsetGappyKeysMask::from_seqlens(
    at::IntArrayRef q_seqlen, at::IntArrayRef kv_seqstarts, at::IntArrayRef kv_seqlen,
    std::optional<at::Device> device) {
  return BlockDiagonalCausalWithOffsetGappyKeysMask(
      BlockDiagonalGappyKeysMask::from_seqlens(q_seqlen, kv_seqstarts, kv_seqlen, device));
}

BlockDiagonalCausalWithOffsetGappyKeysMask BlockDiagonalCausalWithOffsetGappyKeysMask::to(at::Device device) const {
  return moved_gappy(*this, device);
}

LoweredBias lower(const BlockDiagonalGappyKeysMask& bias) {
  const GappySeqInfo& keys = bias.k_seqinfo;
  // Starts without the total: the operator's way to hear that keys may be shared.
  const at::Tensor starts = keys.disjoint ? keys.seqstart : keys.seqstart.narrow(0, 0, keys.num_sequences());
  LoweredBias lowered{.name = bias.name,
                      .scores = bias.scores,
                      .cu_seqlens_q = bias.q_seqinfo.seqstart,
                      .cu_seqlens_k = starts,
                      .seqused_k = bias.k_seqinfo.seqlen,
                      .device_given = bias.q_seqinfo.device_given,
                      .takes_3d = false};
  return lowered.with(bias.band);
}

}  // namespace xformers::ops
