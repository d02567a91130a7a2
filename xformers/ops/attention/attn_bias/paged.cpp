#include "xformers/ops/attention/attn_bias/paged.h"

#include <ATen/ops/full.h>

#include <algorithm>
#include <limits>

#include "xformers/ops/attention/attn_bias/bias_error.h"
#include "xformers/ops/attention/attn_bias/block_diagonal.h"

namespace xformers::ops {
namespace {

template <class Mask>
Mask moved_paged(Mask mask, at::Device device) {
  mask.q_seqinfo = mask.q_seqinfo.to(device);
  mask.k_seqinfo = mask.k_seqinfo.to(device);
  mask.block_tables = mask.block_tables.to(device, /*non_blocking=*/true);
  return mask;
}

// The mask over logical keys, page by page copied to where the page lies; a page that two sequences share is copied for
// each, into the rows of its own queries.
template <class Mask>
at::Tensor materialize_pages(const Mask& mask, const Intervals& keys, const MaskBand& band, at::IntArrayRef sizes,
                             at::ScalarType dtype, at::Device device) {
  const Intervals rows = mask.q_seqinfo.intervals();
  const at::Tensor tables = mask.block_tables.to(at::kCPU, at::kLong).contiguous();
  const int64_t page_size = mask.page_size, max_pages = tables.size(1), slot = max_pages * page_size;
  check_materialized_sizes(sizes, rows, static_cast<int64_t>(rows.size()) * slot);
  const int64_t num_rows = sizes[sizes.size() - 2];
  const int64_t* pages = tables.const_data_ptr<int64_t>();
  const int64_t num_pages = tables.numel() ? *std::max_element(pages, pages + tables.numel()) + 1 : 0;
  const double hidden = -std::numeric_limits<double>::infinity();
  const auto options = at::dtype(dtype).device(device);
  at::Tensor physical = at::full({num_rows, num_pages * page_size}, hidden, options);
  for (size_t i = 0; i < rows.size(); ++i) {
    const auto [q0, q1] = rows[i];
    const auto [k0, k1] = keys[i];
    at::Tensor logical = at::full({q1 - q0, slot}, hidden, options);
    logical.slice(1, k0, k1).copy_(materialize_band(q1 - q0, k1 - k0, band, dtype, device));
    for (int64_t p = 0; p < max_pages; ++p) {
      const int64_t page = pages[static_cast<int64_t>(i) * max_pages + p];
      if (page < 0) bias_error("a page is " + std::to_string(page), "0 or more", "fill the unused entries with 0");
      physical.slice(0, q0, q1)
          .slice(1, page * page_size, (page + 1) * page_size)
          .copy_(logical.slice(1, p * page_size, (p + 1) * page_size));
    }
  }
  at::DimVector physical_sizes(sizes);
  physical_sizes.back() = num_pages * page_size;
  return physical.expand(physical_sizes);
}

// Every sequence's keys in its own space, [0, seqlen)
Intervals from_zero(Intervals intervals) {
  for (auto& [start, end] : intervals) {
    end -= start;
    start = 0;
  }
  return intervals;
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
  return materialize_pages(*this, from_zero(k_seqinfo.intervals()), band, sizes, dtype, device);
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
  return materialize_pages(*this, k_seqinfo.intervals(), kFullBand, sizes, dtype, device);
}

LoweredBias lower(const PagedBlockDiagonalPaddedKeysMask& bias) {
  LoweredBias lowered{.name = bias.name,
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
    bias_error("block_tables.dtype is " + c10::str(block_tables.scalar_type()), "Int",
               "convert with block_tables.to(at::kInt)");
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
