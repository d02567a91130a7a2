// What every bias lowers to, and the part that most of them share: a band.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "xformers/kernels/params/attention.h"

namespace xformers::ops {

// Visible blocks of the score matrix (BlockMask in kernels/params/attention.h), of B x H layouts, each 1 or what inputs
// have. Lists are int32, and may be longer than what the last offset says.
struct BlockLists {
  at::Tensor key_offsets{};    // [B, H, num_q_blocks + 1]; undefined: no block mask
  at::Tensor key_blocks{};     // key blocks of every query block, ascending
  at::Tensor query_offsets{};  // [B, H, num_k_blocks + 1]
  at::Tensor query_blocks{};   // query blocks of every key block, ascending
  at::Tensor bits_of{};        // like key_blocks: the number of the block's bits, -1: all of it is visible. Or none
  at::Tensor bits{};           // int16 [blocks, block_q, block_k / 16]
  int64_t block_q = 0, block_k = 0;
};

// layout x band x blocks x score bias: all that operators and kernels know. See kernels/params/attention.h.
struct LoweredBias {
  const char* name = "None";
  at::Tensor scores{};  // added to the scaled scores; bool: True attends; of sequences: at the place inside each
  int64_t window_left = -1, window_right = -1;
  bool bottom_right = false;
  at::Tensor cu_seqlens_q{}, cu_seqlens_k{}, seqused_k{};
  at::Tensor page_table{};  // int32 [sequences, max_pages]
  int64_t page_size = 0;
  BlockLists blocks{};
  bool device_given = false;  // else the tensors follow the inputs to their device
  bool takes_3d = true;       // inputs [batch, seqlen, head_dim]

  LoweredBias& with(const MaskBand& band) {
    window_left = band.window_left;
    window_right = band.window_right;
    bottom_right = band.bottom_right;
    return *this;
  }
};

// Query i and key j count from the start of their sequence, of nq queries and nk keys; d = nk - nq.
inline constexpr MaskBand kFullBand{};                                                      // every j
inline constexpr MaskBand kCausalBand{.window_right = 0};                                   // j <= i
inline constexpr MaskBand kCausalBottomRightBand{.window_right = 0, .bottom_right = true};  // j <= i + d

// window_size keys, the diagonal among them: i - window_size < j <= i, or the same + d. xformers::Error unless
// positive.
MaskBand causal_window_band(int64_t window_size, bool bottom_right);

// xformers::Error if one is negative.
void check_windows(int64_t window_left, int64_t window_right);

// xformers::Error unless scores have a place for every query and key of packed sequences; see with_bias.
void check_scores(const at::Tensor& scores, int64_t num_sequences, int64_t longest_q, int64_t longest_k);

// The bias as a tensor of `sizes` ([..., queries, keys], the totals of packed ones): 0 where attended (or the scores
// that are added), -inf elsewhere. Keys in pages are asked for as sequences * max_pages * page_size, and come as key
// has them: (largest page + 1) * page_size. total_keys: of sequences that share keys, which the offsets do not say. For
// tests and debugging: waits for the device that the offsets are on.
at::Tensor materialize(const LoweredBias& bias, at::IntArrayRef sizes, at::ScalarType dtype, at::Device device,
                       std::optional<int64_t> total_keys = std::nullopt);

// Starts and a total (as many entries as sequences, and one) promise keys that no two sequences share: where starts
// rise, sequence i has [starts[i], starts[i + 1]) to itself; else used ranges must not overlap. The first sequence
// whose keys run into another's, or -1.
int64_t first_past_its_room(c10::ArrayRef<int32_t> starts_and_total, c10::ArrayRef<int32_t> lengths);

}  // namespace xformers::ops
