#include "xformers/ops/attention/attn_bias/block_diagonal.h"

#include "xformers/ops/attention/attn_bias/bias_error.h"
#include "xformers/ops/attention/attn_bias/packed_tensors.h"

namespace xformers::ops {
namespace {

void check_no_fewer_keys(at::IntArrayRef q, at::IntArrayRef k) {
  for (size_t i = 1; i < q.size(); ++i) {
    const int64_t nq = q[i] - q[i - 1], nk = k[i] - k[i - 1];
    if (nk < nq) {
      bias_error("block " + std::to_string(i - 1) + " has " + std::to_string(nk) + " keys",
                 "at least its number of queries, " + std::to_string(nq),
                 "the first queries would see no key; use make_causal, or give more keys");
    }
  }
}

void check_every_query_sees_a_key(at::IntArrayRef q, at::IntArrayRef k, int64_t window_size) {
  for (size_t i = 1; i < q.size(); ++i) {
    const int64_t nq = q[i] - q[i - 1], nk = k[i] - k[i - 1];
    if (nq > 0 && nq - window_size >= nk) {
      bias_error("block " + std::to_string(i - 1) + " has " + std::to_string(nk) + " keys",
                 "more than " + std::to_string(nq - window_size) + " for " + std::to_string(nq) +
                     " queries and a window of " + std::to_string(window_size),
                 "the last queries would see no key; give more keys or a larger window");
    }
  }
}

}  // namespace

BlockDiagonalMask BlockDiagonalMask::from_seqlens(at::IntArrayRef q_seqlen, at::OptionalIntArrayRef kv_seqlen,
                                                  std::optional<at::Device> device) {
  if (kv_seqlen) check_same_count(q_seqlen.size(), kv_seqlen->size());
  BlockDiagonalMask mask;
  mask.q_seqinfo = SeqLenInfo::from_seqlens(q_seqlen, device);
  mask.k_seqinfo = kv_seqlen && *kv_seqlen != q_seqlen ? SeqLenInfo::from_seqlens(*kv_seqlen, device) : mask.q_seqinfo;
  return mask;
}

std::pair<BlockDiagonalMask, at::Tensor> BlockDiagonalMask::from_tensor_list(at::TensorList tensors) {
  const at::Tensor packed = concatenate_sequences(tensors);
  BlockDiagonalMask mask = from_seqlens(seqlens_of(tensors), std::nullopt, packed.device());
  mask.batch_sizes = batch_sizes_of(tensors);
  return {mask, packed};
}

std::tuple<BlockDiagonalMask, at::Tensor, at::Tensor, at::Tensor> BlockDiagonalMask::from_tensor_lists_qkv(
    at::TensorList queries, at::TensorList keys, at::TensorList values) {
  check_lists(queries, keys, values);
  const at::Tensor query = concatenate_sequences(queries);
  const std::vector<int64_t> kv_seqlen = seqlens_of(keys);
  BlockDiagonalMask mask = from_seqlens(seqlens_of(queries), at::IntArrayRef(kv_seqlen), query.device());
  mask.batch_sizes = batch_sizes_of(queries);
  return {mask, query, concatenate_sequences(keys), values.empty() ? at::Tensor() : concatenate_sequences(values)};
}

std::vector<at::Tensor> BlockDiagonalMask::split(const at::Tensor& x) const {
  if (q_seqinfo.seqstart_host != k_seqinfo.seqstart_host) {
    bias_error("queries and keys have different lengths", "the same", "use split_queries or split_kv");
  }
  return split_queries(x);
}

BlockDiagonalCausalMask BlockDiagonalMask::make_causal() const { return BlockDiagonalCausalMask(*this); }

BlockDiagonalCausalFromBottomRightMask BlockDiagonalMask::make_causal_from_bottomright() const {
  return BlockDiagonalCausalFromBottomRightMask(*this);
}

BlockDiagonalCausalLocalAttentionMask BlockDiagonalMask::make_local_attention(int64_t window_size) const {
  return {*this, window_size};
}

BlockDiagonalCausalLocalAttentionFromBottomRightMask BlockDiagonalMask::make_local_attention_from_bottomright(
    int64_t window_size) const {
  return {*this, window_size};
}

BlockDiagonalMask BlockDiagonalMask::to(at::Device device) const {
  BlockDiagonalMask moved = *this;
  moved.q_seqinfo = q_seqinfo.to(device);
  if (scores.defined()) moved.scores = scores.to(device);
  moved.k_seqinfo = k_seqinfo.seqstart.is_same(q_seqinfo.seqstart) ? moved.q_seqinfo : k_seqinfo.to(device);
  return moved;
}

at::Tensor BlockDiagonalMask::materialize(at::IntArrayRef sizes, at::ScalarType dtype, at::Device device) const {
  return ops::materialize(lower(*this), sizes, dtype, device);
}

BlockDiagonalCausalMask::BlockDiagonalCausalMask(const BlockDiagonalMask& blocks)
    : BlockDiagonalBand(blocks, "BlockDiagonalCausalMask", kCausalBand) {}

BlockDiagonalCausalFromBottomRightMask::BlockDiagonalCausalFromBottomRightMask(const BlockDiagonalMask& blocks)
    : BlockDiagonalBand(blocks, "BlockDiagonalCausalFromBottomRightMask", kCausalBottomRightBand) {}

BlockDiagonalCausalLocalAttentionMask::BlockDiagonalCausalLocalAttentionMask(const BlockDiagonalMask& blocks,
                                                                             int64_t window_size)
    : BlockDiagonalBand(blocks, "BlockDiagonalCausalLocalAttentionMask",
                        causal_window_band(window_size, /*bottom_right=*/false)) {}

BlockDiagonalCausalLocalAttentionMask BlockDiagonalCausalLocalAttentionMask::from_seqlens(
    at::IntArrayRef q_seqlen, at::OptionalIntArrayRef kv_seqlen, int64_t window_size,
    std::optional<at::Device> device) {
  return {BlockDiagonalMask::from_seqlens(q_seqlen, kv_seqlen, device), window_size};
}

BlockDiagonalCausalLocalAttentionFromBottomRightMask::BlockDiagonalCausalLocalAttentionFromBottomRightMask(
    const BlockDiagonalMask& blocks, int64_t window_size)
    : BlockDiagonalBand(blocks, "BlockDiagonalCausalLocalAttentionFromBottomRightMask",
                        causal_window_band(window_size, /*bottom_right=*/true)) {}

BlockDiagonalCausalLocalAttentionFromBottomRightMask BlockDiagonalCausalLocalAttentionFromBottomRightMask::from_seqlens(
    at::IntArrayRef q_seqlen, at::OptionalIntArrayRef kv_seqlen, int64_t window_size,
    std::optional<at::Device> device) {
  return {BlockDiagonalMask::from_seqlens(q_seqlen, kv_seqlen, device), window_size};
}

void check_blocks(at::IntArrayRef seqstart_q, at::IntArrayRef seqstart_k, const MaskBand& band) {
  check_same_count(seqstart_q.size(), seqstart_k.size());
  if (band.bottom_right) return check_no_fewer_keys(seqstart_q, seqstart_k);
  if (band.window_left >= 0) check_every_query_sees_a_key(seqstart_q, seqstart_k, band.window_left + 1);
}

LoweredBias lower(const BlockDiagonalMask& bias) {
  LoweredBias lowered{.name = bias.name,
                      .scores = bias.scores,
                      .cu_seqlens_q = bias.q_seqinfo.seqstart,
                      .cu_seqlens_k = bias.k_seqinfo.seqstart,
                      .device_given = bias.q_seqinfo.device_given,
                      .takes_3d = false};
  return lowered.with(bias.band);
}

}  // namespace xformers::ops
