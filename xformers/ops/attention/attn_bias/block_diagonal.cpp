#include "xformers/ops/attention/attn_bias/block_diagonal.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>

#include <limits>

#include "xformers/ops/attention/attn_bias/bias_error.h"

namespace xformers::ops {
namespace {

// Tensors [batch_i, seqlen_i, *] as packed sequences, one per batch row.
struct Packed {
  explicit Packed(at::TensorList tensors) {
    if (tensors.empty()) bias_error("the list of tensors is empty", "at least one", "pass [batch, seqlen, ...]");
    std::vector<at::Tensor> rows;
    for (const at::Tensor& t : tensors) {
      if (t.dim() < 2)
        bias_error("a tensor has shape " + c10::str(t.sizes()), "[batch, seqlen, ...]", "add dimensions");
      batch_sizes.push_back(t.size(0));
      seqlens.insert(seqlens.end(), t.size(0), t.size(1));
      at::DimVector sizes(t.sizes());
      sizes[0] = 1;
      sizes[1] = t.size(0) * t.size(1);
      rows.push_back(t.reshape(sizes));
    }
    concatenated = at::cat(rows, 1);
  }

  std::vector<int64_t> seqlens, batch_sizes;
  at::Tensor concatenated;
};

void check_no_fewer_keys(const BlockDiagonalMask& mask) {
  const auto &q = mask.q_seqinfo.seqstart_host, &k = mask.k_seqinfo.seqstart_host;
  for (size_t i = 1; i < q.size(); ++i) {
    const int64_t nq = q[i] - q[i - 1], nk = k[i] - k[i - 1];
    if (nk < nq) {
      bias_error("block " + std::to_string(i - 1) + " has " + std::to_string(nk) + " keys",
                 "at least its number of queries, " + std::to_string(nq),
                 "the first queries would see no key; use make_causal, or give more keys");
    }
  }
}

void check_every_query_sees_a_key(const BlockDiagonalMask& mask, int64_t window_size) {
  const auto &q = mask.q_seqinfo.seqstart_host, &k = mask.k_seqinfo.seqstart_host;
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
  const Packed packed(tensors);
  BlockDiagonalMask mask = from_seqlens(packed.seqlens, std::nullopt, packed.concatenated.device());
  mask.batch_sizes = packed.batch_sizes;
  return {mask, packed.concatenated};
}

std::tuple<BlockDiagonalMask, at::Tensor, at::Tensor, at::Tensor> BlockDiagonalMask::from_tensor_lists_qkv(
    at::TensorList queries, at::TensorList keys, at::TensorList values) {
  const Packed q(queries), k(keys);
  if (q.batch_sizes != k.batch_sizes) {
    bias_error("the queries' batch sizes are " + c10::str(at::IntArrayRef(q.batch_sizes)) + ", the keys' " +
                   c10::str(at::IntArrayRef(k.batch_sizes)),
               "the same", "give one key tensor per query tensor, with its batch size");
  }
  BlockDiagonalMask mask = from_seqlens(q.seqlens, at::IntArrayRef(k.seqlens), q.concatenated.device());
  mask.batch_sizes = q.batch_sizes;
  if (values.empty()) return {mask, q.concatenated, k.concatenated, at::Tensor()};
  const Packed v(values);
  if (v.batch_sizes != k.batch_sizes || v.seqlens != k.seqlens) {
    bias_error("keys and values differ in batch size or length", "the same",
               "give one value tensor per key tensor, with its first two sizes");
  }
  return {mask, q.concatenated, k.concatenated, v.concatenated};
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
  moved.k_seqinfo = k_seqinfo.seqstart.is_same(q_seqinfo.seqstart) ? moved.q_seqinfo : k_seqinfo.to(device);
  return moved;
}

at::Tensor BlockDiagonalMask::materialize(at::IntArrayRef sizes, at::ScalarType dtype, at::Device device) const {
  const Intervals rows = q_seqinfo.intervals(), columns = k_seqinfo.intervals();
  check_materialized_sizes(sizes, rows, columns.empty() ? 0 : columns.back().second);
  return materialize_blocks(sizes, rows, columns, band, dtype, device);
}

BlockDiagonalCausalMask::BlockDiagonalCausalMask(const BlockDiagonalMask& blocks)
    : BlockDiagonalBand(blocks, "BlockDiagonalCausalMask", kCausalBand) {}

BlockDiagonalCausalFromBottomRightMask::BlockDiagonalCausalFromBottomRightMask(const BlockDiagonalMask& blocks)
    : BlockDiagonalBand(blocks, "BlockDiagonalCausalFromBottomRightMask", kCausalBottomRightBand) {
  check_no_fewer_keys(*this);
}

BlockDiagonalCausalLocalAttentionMask::BlockDiagonalCausalLocalAttentionMask(const BlockDiagonalMask& blocks,
                                                                             int64_t window_size)
    : BlockDiagonalBand(blocks, "BlockDiagonalCausalLocalAttentionMask",
                        causal_window_band(window_size, /*bottom_right=*/false)) {
  check_every_query_sees_a_key(*this, window_size);
}

BlockDiagonalCausalLocalAttentionMask BlockDiagonalCausalLocalAttentionMask::from_seqlens(
    at::IntArrayRef q_seqlen, at::OptionalIntArrayRef kv_seqlen, int64_t window_size,
    std::optional<at::Device> device) {
  return {BlockDiagonalMask::from_seqlens(q_seqlen, kv_seqlen, device), window_size};
}

BlockDiagonalCausalLocalAttentionFromBottomRightMask::BlockDiagonalCausalLocalAttentionFromBottomRightMask(
    const BlockDiagonalMask& blocks, int64_t window_size)
    : BlockDiagonalBand(blocks, "BlockDiagonalCausalLocalAttentionFromBottomRightMask",
                        causal_window_band(window_size, /*bottom_right=*/true)) {
  check_no_fewer_keys(*this);
}

BlockDiagonalCausalLocalAttentionFromBottomRightMask BlockDiagonalCausalLocalAttentionFromBottomRightMask::from_seqlens(
    at::IntArrayRef q_seqlen, at::OptionalIntArrayRef kv_seqlen, int64_t window_size,
    std::optional<at::Device> device) {
  return {BlockDiagonalMask::from_seqlens(q_seqlen, kv_seqlen, device), window_size};
}

LoweredBias lower(const BlockDiagonalMask& bias) {
  LoweredBias lowered{.name = bias.name,
                      .cu_seqlens_q = bias.q_seqinfo.seqstart,
                      .cu_seqlens_k = bias.k_seqinfo.seqstart,
                      .device_given = bias.q_seqinfo.device_given,
                      .takes_3d = false};
  return lowered.with(bias.band);
}

void check_materialized_sizes(at::IntArrayRef sizes, const Intervals& rows, int64_t num_columns) {
  const int64_t num_rows = rows.empty() ? 0 : rows.back().second;
  if (sizes.size() >= 2 && sizes[sizes.size() - 2] == num_rows && sizes.back() == num_columns) return;
  bias_error("the shape to materialize is " + c10::str(sizes),
             "[..., " + std::to_string(num_rows) + ", " + std::to_string(num_columns) + "]",
             "use the total lengths of queries and keys");
}

at::Tensor materialize_blocks(at::IntArrayRef sizes, const Intervals& rows, const Intervals& columns,
                              const MaskBand& band, at::ScalarType dtype, at::Device device) {
  at::Tensor mask = at::full({sizes[sizes.size() - 2], sizes.back()}, -std::numeric_limits<double>::infinity(),
                             at::dtype(dtype).device(device));
  for (size_t i = 0; i < rows.size(); ++i) {
    const auto [q0, q1] = rows[i];
    const auto [k0, k1] = columns[i];
    mask.slice(0, q0, q1).slice(1, k0, k1).copy_(materialize_band(q1 - q0, k1 - k0, band, dtype, device));
  }
  return mask.expand(sizes);
}

}  // namespace xformers::ops
