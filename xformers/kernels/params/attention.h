// What an attention kernel is asked to do: plain structs, the contract between the operators and every kernel.
//
//   S = softmax_scale * q k^T + bias          scores, [seqlen_q, seqlen_k] per (sequence, head)
//   L = logsumexp of S over visible keys       natural log; -inf where a query sees no key
//   P = exp(S - L),  out = (D * P) v           D = keep / (1 - p) with dropout, else 1
//   dS = P * (D * (dout v^T) - delta),  delta = rowsum(dout * out) - dlse
//   dq = softmax_scale * dS k,  dk = softmax_scale * dS^T q,  dv = (D * P)^T dout,  dbias = dS
//
// A query that sees no key has out 0, lse -inf and all gradients 0.
// (Online softmax: Milakov & Gimelshein 2018; tiling and recomputation: Dao et al. 2022, Dao 2023.)
#pragma once

#include <cstdint>

#include "xformers/kernels/base/dtype.h"

namespace xformers {

// [batch, seqlen, groups, heads, head_dim] by strides in elements; the last dimension has stride 1.
// Heads are ordered groups x heads_per_group. Key and value with head_stride 0 are shared by the heads of a group
// (grouped-query attention): kernels read them once per group.
struct HeadsTensor {
  void* data = nullptr;
  int64_t batch_stride = 0, seq_stride = 0, group_stride = 0, head_stride = 0;
};

struct AttentionShape {
  DType dtype = DType::kFloat32;  // of q, k, v, out, bias and all gradients
  int64_t batch = 0;              // 1 for packed sequences
  int64_t seqlen_q = 0;           // packed: total queries (sum over sequences)
  int64_t seqlen_k = 0;           // packed: total keys
  int64_t num_groups = 1;
  int64_t heads_per_group = 1;
  int64_t head_dim = 0;    // of q and k
  int64_t head_dim_v = 0;  // of v and out

  int64_t num_heads() const { return num_groups * heads_per_group; }
};

// Who is there. Dense: all pointers null, `batch` sequences of seqlen_q queries and seqlen_k keys.
// Packed: num_sequences sequences share batch row 0; sequence b owns queries [cu_seqlens_q[b], cu_seqlens_q[b + 1]) and
// keys [cu_seqlens_k[b], cu_seqlens_k[b + 1]), or cu_seqlens_k[b] + [0, seqused_k[b]) where seqused_k is given (padded
// and gappy keys). Kernels clamp every range to the tensor, whatever the offsets say.
struct SeqLayout {
  int64_t num_sequences = 0;              // packed only
  const int32_t* cu_seqlens_q = nullptr;  // [num_sequences + 1]
  const int32_t* cu_seqlens_k = nullptr;  // [num_sequences + 1]; with seqused_k, num_sequences entries are read
  const int32_t* seqused_k = nullptr;     // [num_sequences] or null

  bool packed() const { return cu_seqlens_q != nullptr; }
};

// Who sees whom. Query i and key j count from the start of their sequence; with the diagonal
//   d(i) = i                        top-left
//   d(i) = i + seqlen_k - seqlen_q  bottom-right (lengths of this sequence)
// key j is visible iff d(i) - window_left <= j <= d(i) + window_right. kUnbounded lifts a side.
// Causal is {kUnbounded, 0}; no mask is {kUnbounded, kUnbounded}.
inline constexpr int64_t kUnbounded = -1;
struct MaskBand {
  int64_t window_left = kUnbounded;
  int64_t window_right = kUnbounded;
  bool bottom_right = false;
};

// What is added to the scaled scores: dense layout only, any strides (0 and non-unit included). data null: nothing.
struct ScoreBias {
  void* data = nullptr;
  int64_t batch_stride = 0, group_stride = 0, head_stride = 0, q_stride = 0, k_stride = 0;
};

// What is dropped: see base/philox.h. p in [0, 1]; 0 switches it off, 1 drops everything.
struct Dropout {
  double p = 0;
  uint64_t philox_seed = 0, philox_offset = 0;
};

// A row statistic, [batch, groups, heads, seqlen_q] with stride 1 over seqlen_q; float, or double for fp64 inputs.
struct RowTensor {
  void* data = nullptr;
  int64_t batch_stride = 0, group_stride = 0, head_stride = 0;
};

struct AttentionFwdParams {
  AttentionShape shape;
  HeadsTensor q, k, v;
  HeadsTensor out;
  RowTensor lse;  // data null: not wanted
  SeqLayout seq;
  MaskBand band;
  ScoreBias bias;
  Dropout dropout;
  double softmax_scale = 1;
};

struct AttentionBwdParams {
  AttentionShape shape;
  HeadsTensor q, k, v, out, dout;
  RowTensor lse;
  RowTensor dlse;          // gradient that reaches lse; data null: none
  HeadsTensor dq, dk, dv;  // every element is written; dk and dv have one entry per query head
  ScoreBias dbias;         // data null: not wanted; every element is written (0 where masked)
  SeqLayout seq;
  MaskBand band;
  ScoreBias bias;
  Dropout dropout;
  double softmax_scale = 1;
};

}  // namespace xformers
