// Biases over the whole of every batch element. None of them holds offsets.
#pragma once

#include "xformers/ops/attention/attn_bias/lowered_bias.h"

namespace xformers::ops {

// A band and nothing else: a Mask has kName and band(). materialize: a tensor of `sizes` ([..., seqlen_q, seqlen_k]), 0
// where attended, -inf elsewhere; for tests. to(): nothing to move.
template <class Mask>
struct BandMask {
  static constexpr bool kTakes3d = false;  // inputs [batch, seqlen, head_dim]

  at::Tensor materialize(at::IntArrayRef sizes, at::ScalarType dtype = at::kFloat, at::Device device = at::kCPU) const {
    return ops::materialize(lower(*this), sizes, dtype, device);
  }
  Mask to(at::Device) const { return static_cast<const Mask&>(*this); }
};

template <class Mask>
LoweredBias lower(const BandMask<Mask>& bias) {
  return LoweredBias{.name = Mask::kName, .takes_3d = Mask::kTakes3d}.with(static_cast<const Mask&>(bias).band());
}

// Causal, and a tensor [batch, (groups, heads,) seqlen_q, seqlen_k] in the query's dtype that is added to the scores;
// gradients flow to it.
struct LowerTriangularMaskWithTensorBias {
  explicit LowerTriangularMaskWithTensorBias(at::Tensor bias);
  LowerTriangularMaskWithTensorBias to(at::Device device) const;
  at::Tensor materialize(at::IntArrayRef sizes, at::ScalarType dtype = at::kFloat, at::Device device = at::kCPU) const;

  at::Tensor bias;
};

// j <= i: causal, aligned at the top-left corner.
struct LowerTriangularMask : BandMask<LowerTriangularMask> {
  static constexpr const char* kName = "LowerTriangularMask";
  static constexpr bool kTakes3d = true;
  static constexpr MaskBand band() { return kCausalBand; }
  LowerTriangularMaskWithTensorBias add_bias(const at::Tensor& bias) const;
};

// i + d - window_size < j <= i + d
struct LowerTriangularFromBottomRightLocalAttentionMask : BandMask<LowerTriangularFromBottomRightLocalAttentionMask> {
  static constexpr const char* kName = "LowerTriangularFromBottomRightLocalAttentionMask";
  explicit LowerTriangularFromBottomRightLocalAttentionMask(int64_t window_size);
  MaskBand band() const { return causal_window_band(window_size, /*bottom_right=*/true); }

  int64_t window_size;
};

// j <= i + d: the last query sees every key.
struct LowerTriangularFromBottomRightMask : BandMask<LowerTriangularFromBottomRightMask> {
  static constexpr const char* kName = "LowerTriangularFromBottomRightMask";
  static constexpr MaskBand band() { return kCausalBottomRightBand; }
  LowerTriangularFromBottomRightLocalAttentionMask make_local_attention(int64_t window_size) const;
};

// i + d - window_left <= j <= i + d + window_right
struct LocalAttentionFromBottomRightMask : BandMask<LocalAttentionFromBottomRightMask> {
  static constexpr const char* kName = "LocalAttentionFromBottomRightMask";
  LocalAttentionFromBottomRightMask(int64_t window_left, int64_t window_right);
  MaskBand band() const { return {window_left, window_right, /*bottom_right=*/true}; }

  int64_t window_left, window_right;
};

// A tensor is [batch, (groups, heads,) seqlen_q, seqlen_k] in the query's dtype, or bool: True attends.
LoweredBias lower(const at::Tensor& bias);
LoweredBias lower(const LowerTriangularMaskWithTensorBias& bias);

}  // namespace xformers::ops
