// What the linear-attention kernels are asked to do. Per sequence and head, with features q'_i, k'_j of m numbers:
//
//   w_ij = exp(g_(j+1) + ... + g_i) q'_i . k'_j        g: log-decay of each token, 0 where there is none
//   out_i = sum_j w_ij v_j, divided by sum_j w_ij where normalised; over all j or, causal, j <= i
//
// which is q'_i times a state [m, V] that takes in one token after the other:
//   S_i = exp(g_i) S_(i-1) + k'_i v_i^T,    z_i = exp(g_i) z_(i-1) + k'_i,    out_i = q'_i S_i / q'_i . z_i
// (Katharopoulos et al., arXiv:2006.16236; decay: Sun et al., arXiv:2307.08621, Dao & Gu, arXiv:2405.21060.)
//
// Features are given, or made tile by tile from x of length scaled by head_dim^(-1/4) and omega (Choromanski et al.,
// arXiv:2009.14794):
//   kExp        exp(x omega - |x|^2 / 2) / sqrt(m)
//   kExpPaired  exp of both signs of x omega side by side, so scaled
// Factors of a row that cancel in its quotient are chosen so that nothing overflows: that of q'_i where normalised,
// that of all k'_j together where moreover every j is seen. A row whose denominator is 0 has out 0 and no gradient.
//
// Sums in fp32 (fp64 for fp64) with one rounding of each result.
#pragma once

#include <cstdint>

#include "xformers/kernels/base/dtype.h"
#include "xformers/kernels/params/attention.h"

namespace xformers {

enum class FeatureMap : int { kGiven, kExp, kExpPaired };

struct LinearAttentionShape {
  DType dtype = DType::kFloat32;  // of q, k, v, out and their gradients; everything else is in its compute type
  FeatureMap map = FeatureMap::kGiven;
  bool causal = false, normalize = true;
  int64_t num_sequences = 0, num_heads = 0;
  int64_t seqlen_q = 0, seqlen_k = 0;   // packed: tokens in all; equal where causal or packed
  const int32_t* cu_seqlens = nullptr;  // packed in batch row 0: [num_sequences + 1], rising from 0 to the last token
  int64_t head_dim = 0, head_dim_v = 0;
  int64_t num_features = 0;  // m: head_dim where given; kExpPaired: even

  constexpr int64_t omega_columns() const { return map == FeatureMap::kExpPaired ? num_features / 2 : num_features; }
  constexpr int64_t state_width() const { return head_dim_v + (normalize ? 1 : 0); }
};

// All of them [batch, seqlen, heads, ...] as HeadsTensor says, each head a group of one; the others contiguous.
struct LinearAttentionInputs {
  HeadsTensor q, k, v;
  const void* omega = nullptr;      // [head_dim, omega_columns]; null where features are given
  const void* log_decay = nullptr;  // [batch, seqlen, heads]; causal alone; null: none
  const void* state = nullptr;      // [num_sequences, heads, m, V], what came before; normalised: [.., V + 1], the last
                                    // column sums the features; null: nothing
};

struct LinearAttentionFwdParams {
  LinearAttentionShape shape;
  LinearAttentionInputs in;
  HeadsTensor out;              // [batch, seqlen_q, heads, V]
  void* denominator = nullptr;  // [batch, seqlen_q, heads]; normalised alone: for backward, in units of its own
  void* final_state = nullptr;  // like state; null: not wanted
};

// Features and states are made again.
struct LinearAttentionBwdParams {
  LinearAttentionShape shape;
  LinearAttentionInputs in;
  HeadsTensor out, dout;
  const void* denominator = nullptr;
  const void* dfinal_state = nullptr;  // null: 0
  HeadsTensor dq, dk, dv;
  void* dlog_decay = nullptr;  // never null where there is a log_decay
  void* dstate = nullptr;      // null: not wanted
};

}  // namespace xformers
