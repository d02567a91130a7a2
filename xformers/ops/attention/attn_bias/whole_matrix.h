// Biases over the whole of every batch element. None of them holds offsets.
#pragma once

#include "xformers/ops/attention/attn_bias/lowered_bias.h"

namespace xformers::ops {

// A band and nothing else. materialize: a tensor of `sizes` ([..., seqlen_q, seqlen_k]), 0 where attended, -inf
// elsewhere; for tests. to(): nothing to move.
template <class Mask>
struct BandMask {
  at::Tensor materialize(at::IntArrayRef sizes, at::ScalarType dtype = at::kFloat, at::Device device = at::kCPU) const {
    return ops::materialize(LoweredBias{}.with(static_cast<const Mask&>(*this).band()), sizes, dtype, device);
  }
  Mask to(at::Device) const { return static_cast<const Mask&>(*this); }
};

// The same, and a tensor [batch, (groups, heads,) seqlen_q, seqlen_k] in the query's dtype that is added to the scores;
// gradients flow to it.
struct LowerTriangularMaskWithTensorBias {
  explicit LowerTriangularMaskWithTensorBias(at::Tensor bias);
  LowerTriangularMaskWithTensorBias to(at::Device device) const;
  at::Tensor materialize(at::IntArrayRef sizes, at::ScalarType dtype = at::kFloat, at::Device device = at::kCPU) const;

  at::Tensor bias;
};

// j <= i: causal, aligned at the top-left corner.
struct LowerTriangularMask : BandMask<LowerTriangularMask> {
  static constexpr MaskBand band() { return kCausalBand; }
  LowerTriangularMaskWithTensorBias add_bias(const at::Tensor& bias) const;
};

// i + d - window_size < j <= i + d
struct LowerTriangularFromBottomRightLocalAttentionMask : BandMask<LowerTriangularFromBottomRightLocalAttentionMask> {
  explicit LowerTriangularFromBottomRightLocalAttentionMask(int64_t window_size);
  MaskBand band() const { return causal_window_band(window_size, /*bottom_right=*/true); }

  int64_t window_size;
};

// j <= i + d: the last query sees every key.
struct LowerTriangularFromBottomRightMask : BandMask<LowerTriangularFromBottomRightMask> {
  static constexpr MaskBand band() { return kCausalBottomRightBand; }
  LowerTriangularFromBottomRightLocalAttentionMask make_local_attention(int64_t window_size) const;
};

// i + d - window_left <= j <= i + d + window_right
struct LocalAttentionFromBottomRightMask : BandMask<LocalAttentionFromBottomRightMask> {
  LocalAttentionFromBottomRightMask(int64_t window_left, int64_t window_right);
  MaskBand band() const { return {window_left, window_right, /*bottom_right=*/true}; }

  int64_t window_left, window_right;
};

// A tensor is [batch, (groups, heads,) seqlen_q, seqlen_k] in the query's dtype, or bool: True attends.
LoweredBias lower(const at::Tensor& bias);
LoweredBias lower(const LowerTriangularMask& bias);
LoweredBias lower(const LowerTriangularMaskWithTensorBias& bias);
LoweredBias lower(const LowerTriangularFromBottomRightMask& bias);
LoweredBias lower(const LowerTriangularFromBottomRightLocalAttentionMask& bias);
LoweredBias lower(const LocalAttentionFromBottomRightMask& bias);

}  // namespace xformers::ops
