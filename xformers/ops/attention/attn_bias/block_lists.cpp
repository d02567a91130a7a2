#include "xformers/ops/attention/attn_bias/block_lists.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/full.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>

#include "xformers/kernels/params/block_mask.h"

namespace xformers::ops {
namespace {

// Rows of `seen` [B, H, rows, columns] as lists, one behind the other.
class RowLists {
 public:
  RowLists(const at::Tensor& seen, int64_t capacity) : sizes_(seen.sizes()), capacity_(std::max<int64_t>(capacity, 1)) {
    const at::Tensor counts = seen.sum(-1, /*keepdim=*/false, at::kLong);
    const at::Tensor ends = counts.flatten().cumsum(0).view_as(counts);
    const at::Tensor first = ends.slice(2, 0, 1) - counts.slice(2, 0, 1);
    offsets = (sizes_[2] > 0 ? at::cat({first, ends}, 2) : ends.new_zeros({sizes_[0], sizes_[1], 1})).to(at::kInt);
    const at::Tensor flat = seen.flatten();
    places_ = at::where(flat, flat.cumsum(0, at::kLong) - 1, capacity_).clamp_max(capacity_);
  }
  // What each block has of `values` [B, H, rows, columns], in the order of the lists; `rest` where these end.
  at::Tensor gather(const at::Tensor& values, int64_t rest) const {
    const at::Tensor list = at::full({capacity_ + 1}, rest, values.options().dtype(at::kInt));
    list.scatter_(0, places_, values.expand(sizes_).to(at::kInt).flatten());
    return list.narrow(0, 0, capacity_);
  }
  at::Tensor columns() const {
    return gather(at::arange(sizes_[3], places_.options().dtype(at::kInt)).expand(sizes_), 0);
  }

  at::Tensor offsets;

 private:
  at::DimVector sizes_;
  int64_t capacity_;
  at::Tensor places_;  // of each block; behind the list where it is not seen
};

// [B, H, S, T] -> [B, H, num_q_blocks, block_q, num_k_blocks, block_k], `rest` behind the last elements.
at::Tensor in_blocks(const at::Tensor& mask, int64_t block_q, int64_t block_k, bool rest) {
  const int64_t rows = (mask.size(2) + block_q - 1) / block_q, columns = (mask.size(3) + block_k - 1) / block_k;
  return at::constant_pad_nd(mask, {0, columns * block_k - mask.size(3), 0, rows * block_q - mask.size(2)}, rest)
      .view({mask.size(0), mask.size(1), rows, block_q, columns, block_k});
}

}  // namespace

BlockLists lists_of_seen(const at::Tensor& seen, const at::Tensor& numbers, int64_t capacity) {
  const c10::InferenceMode no_inference(false);  // lists are saved for backward, whatever mode they are made in
  const RowLists keys(seen, capacity), queries(seen.transpose(2, 3), capacity);
  BlockLists lists{.key_offsets = keys.offsets,
                   .key_blocks = keys.columns(),
                   .query_offsets = queries.offsets,
                   .query_blocks = queries.columns()};
  if (numbers.defined()) lists.bits_of = keys.gather(numbers, -1);
  return lists;
}

at::Tensor seen_of_indices(const at::Tensor& indices, const at::Tensor& counts, int64_t num_key_blocks) {
  at::DimVector sizes(indices.sizes());
  sizes.back() = num_key_blocks + 1;
  at::Tensor seen = at::zeros(sizes, indices.options().dtype(at::kBool));
  const at::Tensor given =
      counts.defined() ? at::arange(indices.size(3), indices.options()).lt(counts.unsqueeze(-1)) : indices.ge(0);
  const at::Tensor clamped = indices.clamp(0, std::max<int64_t>(num_key_blocks - 1, 0));
  seen.scatter_(3, at::where(given, clamped, num_key_blocks), true);  // the last column is nobody's
  return seen.narrow(3, 0, num_key_blocks).contiguous();
}

at::Tensor seen_of_bsr(const at::Tensor& offsets, const at::Tensor& columns, int64_t num_key_blocks) {
  const int64_t batch = offsets.size(0), heads = offsets.size(1), rows = offsets.size(2) - 1, nnz = columns.size(2);
  const int64_t blocks = rows * num_key_blocks;
  at::Tensor seen = at::zeros({batch, heads, blocks + 1}, columns.options().dtype(at::kBool));
  const at::Tensor places = at::arange(nnz, columns.options()).expand({batch, heads, nnz}).contiguous();
  const at::Tensor row =
      at::searchsorted(offsets.slice(2, 1, rows + 1).contiguous(), places, /*out_int32=*/false, /*right=*/true);
  const at::Tensor given = places.ge(offsets.slice(2, 0, 1)).logical_and(row.lt(rows));
  const at::Tensor block = row * num_key_blocks + columns.clamp(0, std::max<int64_t>(num_key_blocks - 1, 0));
  seen.scatter_(2, at::where(given, block, blocks).clamp(0, blocks), true);
  return seen.narrow(2, 0, blocks).contiguous().view({batch, heads, rows, num_key_blocks});
}

at::Tensor pack_bits(const at::Tensor& elements) {
  const at::Tensor squares = elements.unflatten(-1, {elements.size(-1) / kSquare, kSquare});
  at::Tensor bits = squares.select(-1, 0).to(at::kShort).contiguous();
  for (int i = 1; i < kSquare; ++i) {
    bits.bitwise_or_(squares.select(-1, i).to(at::kShort).bitwise_left_shift_(at::Scalar(i)));
  }
  return bits;
}

BlockLists lists_of_elements(const at::Tensor& mask, int64_t block_q, int64_t block_k) {
  const c10::InferenceMode no_inference(false);
  const at::Tensor blocks = in_blocks(mask, block_q, block_k, false);
  const at::Tensor seen = blocks.any(5).any(3), whole = in_blocks(mask, block_q, block_k, true).all(5).all(3);
  const at::Tensor numbers =
      at::where(whole, -1, at::arange(seen.numel(), seen.options().dtype(at::kInt)).view_as(seen));
  BlockLists lists = lists_of_seen(seen, numbers, seen.numel());
  lists.bits = pack_bits(blocks.transpose(3, 4)).view({seen.numel(), block_q, block_k / kSquare});
  lists.block_q = block_q, lists.block_k = block_k;
  return lists;
}

}  // namespace xformers::ops
