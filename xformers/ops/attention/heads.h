// From tensors of attention to what its kernels take: pointers and strides in elements, with heads as groups x heads.
#pragma once

#include "xformers/kernels/params/attention.h"
#include "xformers/ops/attention/attn_bias/lowered_bias.h"
#include "xformers/ops/common/to_params.h"

namespace xformers::ops {

// How the dimensions between seqlen and head_dim count as groups x heads.
enum class HeadDims {
  kNone,         // [batch, seqlen, head_dim]: one group of one head
  kGroups,       // [batch, seqlen, heads, head_dim]: every head is a group of its own
  kHeads,        // the same dimensions, but key and value are one head `expand`ed: one group, which reads them once
  kGroupsHeads,  // [batch, seqlen, groups, heads, head_dim]
};

struct HeadStrides {
  int64_t group = 0, head = 0;
};

// `first` is the index of the first head dimension.
inline HeadStrides head_strides(const at::Tensor& t, HeadDims dims, int64_t first) {
  switch (dims) {
    case HeadDims::kNone: return {};
    case HeadDims::kGroups: return {t.stride(first), 0};
    case HeadDims::kHeads: return {0, t.stride(first)};
    case HeadDims::kGroupsHeads: return {t.stride(first), t.stride(first + 1)};
  }
  return {};
}

inline HeadDims head_dims(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value) {
  if (query.dim() == 3) return HeadDims::kNone;
  if (query.dim() == 5) return HeadDims::kGroupsHeads;
  const bool shared = query.size(2) > 1 && key.stride(2) == 0 && value.stride(2) == 0;
  return shared ? HeadDims::kHeads : HeadDims::kGroups;
}

// [batch, seqlen, (groups, heads,) head_dim]
inline HeadsTensor to_heads(const at::Tensor& t, HeadDims dims) {
  const HeadStrides heads = head_strides(t, dims, 2);
  return {.data = const_cast<void*>(t.const_data_ptr()),
          .batch_stride = t.stride(0),
          .seq_stride = t.stride(1),
          .group_stride = heads.group,
          .head_stride = heads.head};
}

// [batch, (groups, heads,) seqlen]; 3-D inputs have one head dimension of size 1 here.
inline RowTensor to_rows(const at::Tensor& t, HeadDims dims) {
  const HeadStrides heads = head_strides(t, dims, 1);
  return {.data = const_cast<void*>(t.const_data_ptr()),
          .batch_stride = t.stride(0),
          .group_stride = heads.group,
          .head_stride = heads.head};
}

// [batch, (groups, heads,) seqlen_q, seqlen_k]; what has size 1 in front of these is shared.
inline ScoreBias to_score_bias(const at::Tensor& t, HeadDims dims) {
  const HeadStrides heads = head_strides(t, dims, 1);
  const auto shared = [&](int64_t dim, int64_t stride) { return t.size(dim) == 1 ? 0 : stride; };
  return {.data = const_cast<void*>(t.const_data_ptr()),
          .batch_stride = shared(0, t.stride(0)),
          .group_stride = shared(1, heads.group),
          .head_stride = shared(-3, heads.head),
          .q_stride = t.stride(-2),
          .k_stride = t.stride(-1)};
}

// [(sequences,) (groups, heads)]; 3-D inputs have one head here.
inline HeadNumbers to_head_numbers(const at::Tensor& t, HeadDims dims) {
  const int64_t first = t.dim() - (dims == HeadDims::kGroupsHeads ? 2 : 1);
  const HeadStrides heads = head_strides(t, dims, first);
  return {.data = const_cast<void*>(t.const_data_ptr()),
          .sequence_stride = first > 0 ? t.stride(0) : 0,
          .group_stride = heads.group,
          .head_stride = heads.head};
}

// Offsets of the lists are [B or 1, H or 1, blocks + 1], contiguous; H is the number of groups or of query heads.
inline BlockMask to_block_mask(const BlockLists& lists, const AttentionShape& shape, HeadDims dims) {
  BlockMask mask;
  if (!lists.key_offsets.defined()) return mask;
  const auto data = [](const at::Tensor& t) { return t.defined() ? t.const_data_ptr<int32_t>() : nullptr; };
  mask.key_offsets = data(lists.key_offsets), mask.key_blocks = data(lists.key_blocks);
  mask.query_offsets = data(lists.query_offsets), mask.query_blocks = data(lists.query_blocks);
  if (lists.bits.defined()) {
    mask.bits_of = data(lists.bits_of);
    mask.bits = reinterpret_cast<const uint16_t*>(lists.bits.const_data_ptr<int16_t>());
  }
  mask.block_q = lists.block_q, mask.block_k = lists.block_k;
  mask.num_q_blocks = lists.key_offsets.size(-1) - 1, mask.num_k_blocks = lists.query_offsets.size(-1) - 1;
  const int64_t batch = lists.key_offsets.size(0), heads = lists.key_offsets.size(1);
  mask.batch_stride = batch > 1 ? heads : 0;
  if (heads == 1) return mask;
  const bool of_groups = dims == HeadDims::kGroupsHeads && heads == shape.num_groups;
  mask.head_stride = dims == HeadDims::kGroups || of_groups ? 0 : 1;
  mask.group_stride = of_groups ? 1 : shape.heads_per_group;
  return mask;
}

inline AttentionShape to_shape(const at::Tensor& query, const at::Tensor& key, int64_t head_dim_v, HeadDims dims) {
  AttentionShape shape{.dtype = to_dtype(query.scalar_type()),
                       .batch = query.size(0),
                       .seqlen_q = query.size(1),
                       .seqlen_k = key.size(1),
                       .head_dim = query.size(-1),
                       .head_dim_v = head_dim_v};
  if (dims == HeadDims::kGroups || dims == HeadDims::kGroupsHeads) shape.num_groups = query.size(2);
  if (dims == HeadDims::kHeads) shape.heads_per_group = query.size(2);
  if (dims == HeadDims::kGroupsHeads) shape.heads_per_group = query.size(3);
  return shape;
}

}  // namespace xformers::ops
