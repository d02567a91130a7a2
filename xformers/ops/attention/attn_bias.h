// What can be added to the scores, or hide them: bias types, and what each lowers to.
//
// To add one: a struct here, its lower() in attn_bias.cpp.
#pragma once

#include <ATen/core/Tensor.h>

#include <concepts>
#include <optional>
#include <utility>
#include <vector>

namespace xformers::ops {

// layout x band x score bias: all that operators and kernels know. See kernels/params/attention.h.
struct LoweredBias {
  const char* name = "None";
  at::Tensor scores{};  // added to the scaled scores; bool: True attends
  int64_t window_left = -1, window_right = -1;
  bool bottom_right = false;
  at::Tensor cu_seqlens_q{}, cu_seqlens_k{}, seqused_k{};
  bool device_given = false;  // else the offsets follow the inputs to their device
  bool takes_3d = true;       // inputs [batch, seqlen, head_dim]
};

// In what follows, a query i and a key j count from the start of their sequence, of nq queries and nk keys.

struct LowerTriangularMask {};  // j <= i: causal, aligned at the top-left corner

struct LowerTriangularFromBottomRightMask {};  // j <= i + nk - nq: the last query sees every key

// i + nk - nq - window_left <= j <= i + nk - nq + window_right
struct LocalAttentionFromBottomRightMask {
  LocalAttentionFromBottomRightMask(int64_t window_left, int64_t window_right);
  int64_t window_left, window_right;
};

// Sequences that lie one after the other: sequence b is [seqstart[b], seqstart[b + 1]).
struct SeqLenInfo {
  static SeqLenInfo from_seqlens(at::IntArrayRef seqlens, std::optional<at::Device> device = std::nullopt);

  // x [1, total, *] -> one [1, seqlen, *] per sequence; with batch sizes, runs of that many sequences of equal length
  // are put together as [batch_size, seqlen, *].
  std::vector<at::Tensor> split(const at::Tensor& x, const std::vector<int64_t>& batch_sizes = {}) const;

  at::Tensor seqstart;                 // int32 [sequences + 1]
  std::vector<int64_t> seqstart_host;  // the same numbers
  int64_t max_seqlen = -1, min_seqlen = -1;
  bool device_given = false;
};

struct BlockDiagonalCausalMask;

// Packed sequences (batch 1): every query sees the keys of its own sequence, and no other.
struct BlockDiagonalMask {
  static BlockDiagonalMask from_seqlens(at::IntArrayRef q_seqlen, at::OptionalIntArrayRef kv_seqlen = std::nullopt,
                                        std::optional<at::Device> device = std::nullopt);
  // tensors [batch_i, seqlen_i, *] -> the mask and their concatenation [1, sum of batch_i * seqlen_i, *]
  static std::pair<BlockDiagonalMask, at::Tensor> from_tensor_list(at::TensorList tensors);

  // The inverse of the concatenation.
  std::vector<at::Tensor> split_queries(const at::Tensor& x) const { return q_seqinfo.split(x, batch_sizes); }
  std::vector<at::Tensor> split_kv(const at::Tensor& x) const { return k_seqinfo.split(x, batch_sizes); }
  std::vector<at::Tensor> split(const at::Tensor& x) const;  // only where queries and keys have the same lengths

  BlockDiagonalCausalMask make_causal() const;

  SeqLenInfo q_seqinfo, k_seqinfo;
  std::vector<int64_t> batch_sizes;
};

// The same, and j <= i.
struct BlockDiagonalCausalMask : BlockDiagonalMask {
  static BlockDiagonalCausalMask from_seqlens(at::IntArrayRef q_seqlen,
                                              at::OptionalIntArrayRef kv_seqlen = std::nullopt,
                                              std::optional<at::Device> device = std::nullopt);
};

// One function per bias. A tensor is [batch, (groups, heads,) seqlen_q, seqlen_k] in the query's dtype, or bool.
LoweredBias lower(const at::Tensor& bias);
LoweredBias lower(const LowerTriangularMask& bias);
LoweredBias lower(const LowerTriangularFromBottomRightMask& bias);
LoweredBias lower(const LocalAttentionFromBottomRightMask& bias);
LoweredBias lower(const BlockDiagonalMask& bias);
LoweredBias lower(const BlockDiagonalCausalMask& bias);

template <class Bias>
concept Lowerable = requires(const Bias& bias) {
  { lower(bias) } -> std::same_as<LoweredBias>;
};

// Any of them, or none.
class AttentionBias {
 public:
  AttentionBias() = default;
  template <Lowerable Bias>
  AttentionBias(const Bias& bias) : lowered_(lower(bias)) {}

  const LoweredBias& lowered() const { return lowered_; }

 private:
  LoweredBias lowered_;
};

}  // namespace xformers::ops
