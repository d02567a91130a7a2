// Attention without a softmax, linear in the number of tokens.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "xformers/kernels/base/error.h"

namespace xformers::ops {

// What may be asked of a call. Features are q and k themselves, or made of them by omega; see linear_attention().
struct LinearAttentionOptions {
  std::optional<at::Tensor> omega{};       // [head_dim, features], or half as many where paired; has no gradient
  bool paired = false;                     // exp of both signs of x omega
  std::optional<at::Tensor> log_decay{};   // [batch, seqlen, heads], causal alone
  std::optional<at::Tensor> state{};       // [sequences, heads, features, head_dim_v (+ 1 where normalised)]
  std::optional<at::Tensor> cu_seqlens{};  // int32 [sequences + 1]: packed in a batch of 1
  bool causal = false;
  bool normalize = true;
  bool return_state = false;
};

struct LinearAttentionResult {
  at::Tensor out;    // [batch, seqlen_q, heads, head_dim_v], in q's dtype
  at::Tensor state;  // fp32 (fp64), as in the options; [0] where not asked for
};

// Per head, with features q'_i and k'_j:
//   w_ij = exp(g_(j+1) + ... + g_i) q'_i . k'_j       g: log_decay, 0 by default
//   out_i = sum_j w_ij v_j, divided by sum_j w_ij where `normalize`; over all j or, `causal`, j <= i
// (Katharopoulos et al., arXiv:2006.16236; decay: Sun et al., arXiv:2307.08621, Dao & Gu, arXiv:2405.21060.)
//
// q [batch, seqlen_q, heads, head_dim], k [batch, seqlen_k, heads, head_dim], v [batch, seqlen_k, heads, head_dim_v],
// all of one dtype: fp32, bf16, fp16 or fp64. Any strides.
// With omega, x = head_dim^(-1/4) q (or k) becomes exp(x omega - |x|^2 / 2) / sqrt(features), or that of both signs of
// x omega side by side (Choromanski et al., arXiv:2009.14794), tile by tile: features never lie in memory. `state` is
// what came before, sum_j exp(..) k'_j v_j^T, normalised with sum_j exp(..) k'_j as its last column; `return_state`
// gives it back with these tokens in it, decayed to the last of them. One more token costs O(features head_dim_v).
// Sequences of a packed batch (`cu_seqlens`) do not see each other. Sums in fp32. A row whose denominator is 0 is 0.
// Differentiable in q, k, v, log_decay and state. xformers::Error where the arguments do not fit each other.
LinearAttentionResult linear_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                       const LinearAttentionOptions& options = {});

}  // namespace xformers::ops
