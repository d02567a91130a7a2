// What an attention kernel is asked to do: plain structs, the contract between the operators and every kernel.
//
//   S = softmax_scale * q k^T + bias          scores, [seqlen_q, seqlen_k] per (sequence, head); ScoreModifiers says
//                                             what else may happen to them
//   L = logsumexp of S over visible keys       natural log; -inf where a query sees no key
//   P = exp(S - L),  out = (D * P) v           D = keep / (1 - p) with dropout, else 1
//   dS = P * (D * (dout v^T) - delta),  delta = rowsum(dout * out) - dlse
//   dq = softmax_scale * dS k,  dk = softmax_scale * dS^T q,  dv = (D * P)^T dout,  dbias = dS
//
// A query that sees no key has out 0, lse -inf (the sink's logit where there is one) and all gradients 0.
// (Online softmax: Milakov & Gimelshein 2018; tiling and recomputation: Dao et al. 2022, Dao 2023.)
#pragma once

#include <cstdint>

#include "xformers/kernels/base/dtype.h"
#include "xformers/kernels/base/inline.h"
#include "xformers/kernels/params/dropout.h"

namespace xformers {

// [batch, seqlen, groups, heads, head_dim] by strides in elements; the last dimension has stride 1.
// Heads are ordered groups x heads_per_group. Key and value with head_stride 0 are shared by the heads of a group
// (grouped-query attention): kernels read them once per group.
struct HeadsTensor {
  void* data = nullptr;
  int64_t batch_stride = 0, seq_stride = 0, group_stride = 0, head_stride = 0;

  // Where a row begins, in elements.
  XFORMERS_INLINE int64_t offset(int64_t batch, int64_t row, int64_t group, int64_t head) const {
    return batch * batch_stride + row * seq_stride + group * group_stride + head * head_stride;
  }
};

struct AttentionShape {
  DType dtype = DType::kFloat32;  // of q, k, v, bias and all gradients
  int64_t batch = 0;              // 1 for packed sequences
  int64_t seqlen_q = 0;           // packed: total queries (sum over sequences)
  int64_t seqlen_k = 0;           // packed: total keys
  int64_t num_groups = 1;
  int64_t heads_per_group = 1;
  int64_t head_dim = 0;    // of q and k
  int64_t head_dim_v = 0;  // of v and out

  constexpr int64_t num_heads() const { return num_groups * heads_per_group; }
};

// Keys in pages: key t of sequence b lies in row page_table[b][t / page_size] * page_size + t % page_size of K and V.
// Pages may be shared, in any order; entries past a sequence's last key are never read, and entries outside the tensors
// are clamped into them.
struct PageTable {
  const int32_t* data = nullptr;  // [num_sequences, max_pages]; null: keys are not paged
  int64_t row_stride = 0, max_pages = 0, page_size = 0;
};

// Who is there. Dense: all pointers null, `batch` sequences of seqlen_q queries and seqlen_k keys.
// Packed: num_sequences sequences share batch row 0; sequence b owns queries [cu_seqlens_q[b], cu_seqlens_q[b + 1]) and
// keys [cu_seqlens_k[b], cu_seqlens_k[b + 1]), or cu_seqlens_k[b] + [0, seqused_k[b]) where seqused_k is given (padded
// and gappy keys). Paged: the keys of sequence b are cu_seqlens_k[b] + [0, seqused_k[b]) counted in its own pages
// (cu_seqlens_k null: from 0), and seqlen_k is the number of rows that K and V have in all.
// Kernels clamp every range to the tensor, or to the pages, whatever the offsets say.
struct SeqLayout {
  int64_t num_sequences = 0;              // packed only
  const int32_t* cu_seqlens_q = nullptr;  // [num_sequences + 1]
  const int32_t* cu_seqlens_k = nullptr;  // [num_sequences + 1]; with seqused_k, num_sequences entries are read
  const int32_t* seqused_k = nullptr;     // [num_sequences] or null; never null where paged
  PageTable pages;
  // A sequence has no more queries and keys than these, whatever the offsets say: what there is of a bias. -1: any.
  int64_t most_queries = -1, most_keys = -1;

  constexpr bool packed() const { return cu_seqlens_q != nullptr; }
  constexpr bool paged() const { return pages.data != nullptr; }
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

// Which blocks of the score matrix are visible, besides the band: query i sees key j only where the list of query block
// i / block_q has key block j / block_k, and, if that block has bits of its own, where the bit of (i % block_q,
// j % block_k) is set. Dense layouts only. Blocks are multiples of 16, the last ones may be short. Two lists say the
// same, both ascending and without repetition; a list of layout l begins at [l * (blocks + 1)] of its offsets.
struct BlockMask {
  const int32_t* key_offsets = nullptr;    // [layouts, num_q_blocks + 1], of key_blocks; null: everything is visible
  const int32_t* key_blocks = nullptr;     // the key blocks of every query block
  const int32_t* query_offsets = nullptr;  // [layouts, num_k_blocks + 1], of query_blocks
  const int32_t* query_blocks = nullptr;   // the query blocks of every key block
  const int32_t* bits_of = nullptr;        // like key_blocks: whose bits, -1: all are visible. null: of every block
  const uint16_t* bits = nullptr;          // [blocks with bits, block_q, block_k / 16], the lowest bit is the first key
  int64_t block_q = 0, block_k = 0;
  int64_t num_q_blocks = 0, num_k_blocks = 0;
  int64_t batch_stride = 0, group_stride = 0, head_stride = 0;  // in layouts; 0: shared

  constexpr bool present() const { return key_offsets != nullptr; }
};

// What is added to the scores, any strides (0 and non-unit included): read at (sequence, head, query, key), counted
// inside the sequence where sequences are packed; SeqLayout then says how many of them are there.
// data null: nothing.
struct ScoreBias {
  void* data = nullptr;
  int64_t batch_stride = 0, group_stride = 0, head_stride = 0, q_stride = 0, k_stride = 0;

  XFORMERS_INLINE int64_t offset(int64_t batch, int64_t group, int64_t head, int64_t query, int64_t key) const {
    return batch * batch_stride + group * group_stride + head * head_stride + query * q_stride + key * k_stride;
  }
};

// A row statistic, [batch, groups, heads, seqlen_q] with stride 1 over seqlen_q; float, or double for fp64 inputs.
struct RowTensor {
  void* data = nullptr;
  int64_t batch_stride = 0, group_stride = 0, head_stride = 0;

  XFORMERS_INLINE int64_t offset(int64_t batch, int64_t group, int64_t head, int64_t row) const {
    return batch * batch_stride + group * group_stride + head * head_stride + row;
  }
};

// One number per sequence and head, [sequences, groups, heads]; float, or double for fp64 inputs.
struct HeadNumbers {
  void* data = nullptr;
  int64_t sequence_stride = 0, group_stride = 0, head_stride = 0;

  XFORMERS_INLINE int64_t offset(int64_t sequence, int64_t group, int64_t head) const {
    return sequence * sequence_stride + group * group_stride + head * head_stride;
  }
};

// K and V as integers, dequantised to shape.dtype while they are read (forward only): element = code * scale + shift.
// Strides of k and v then count 32-bit words. A coefficient word holds an fp16 scale (low half) and an fp16 shift.
//   kInt4  a row is num_groups coefficient words, then head_dim / 8 words of eight codes 0 ... 15, lowest bits first;
//          the coefficients of group g are those of elements [g, g + 1) * head_dim / num_groups.
//   kFp8   a row is head_dim / 4 words of four e4m3 numbers; its one coefficient word is in k_scale_shift,
//          v_scale_shift (head_dim and head_dim_v are equal in both).
enum class KvFormat : int { kPlain, kInt4, kFp8 };
struct KvQuantization {
  KvFormat format = KvFormat::kPlain;
  int64_t num_groups = 1;                    // kInt4: divides head_dim / 8
  HeadsTensor k_scale_shift, v_scale_shift;  // kFp8: int32 [batch, seqlen_k, groups, heads]
};

// What is done to a score between the product and the softmax, in this order. A kernel asks which of them are there.
//
//   S = softmax_scale * q k^T
//   S = softcap * tanh(S / softcap)                      softcap 0: left out
//   S = S - alibi_slopes[sequence, head] * |d(i) - j|    d(i): the diagonal of the band (MaskBand); without a band
//                                                        bottom-right
//   S = S + bias[sequence, head, i, j]
//   L = log(sum over visible keys of exp(S) + exp(sinks[sequence, head]))    a sink has weight, no value; -inf: none
//
// Backward: dS before the cap is dS after it times 1 - tanh^2, and
//   dslope = -sum dS * |d(i) - j|,  dsink = -sum over queries of exp(sink - L) * delta.
// (Softcap: Gemma Team 2024, arXiv:2408.00118. ALiBi: Press et al. 2021, arXiv:2108.12409. Sinks: Xiao et al. 2023,
// arXiv:2309.17453, learned as in gpt-oss, arXiv:2508.10925.)
struct ScoreModifiers {
  ScoreBias bias;
  double softcap = 0;
  HeadNumbers alibi_slopes, sinks;  // data null: none

  // Whether scores are anything but softmax_scale * q k^T.
  constexpr bool change_scores() const { return bias.data || softcap > 0 || alibi_slopes.data; }
};

// What forward and backward of one attention have in common.
struct AttentionProblem {
  AttentionShape shape;
  HeadsTensor q, k, v;
  SeqLayout seq;
  MaskBand band;
  BlockMask blocks;
  ScoreModifiers mods;
  Dropout dropout;
  double softmax_scale = 1;
};

// The logarithm of a row's sum in two numbers of fp32 (fp64 inputs: fp64): L = lse + lse_low. Where a row's scores are
// far from 0, one number forgets the sum: at -1e9 the neighbours of an fp32 are 64 apart. lse_low is what rounding to
// lse has lost, at most half of a unit in lse's last place (0 where lse is not finite).
struct AttentionFwdParams : AttentionProblem {
  HeadsTensor out;
  bool wide_out = false;  // out is fp32 (fp64 for fp64 inputs), not shape.dtype
  RowTensor lse;          // data null: not wanted
  RowTensor lse_low;      // data null: not wanted
  KvQuantization quantization;
  int64_t num_splits = 0;  // parts in which the keys of each sequence are worked on and merged; 0: chosen
};

// Layouts are dense or packed without pages, and no key belongs to two sequences.
struct AttentionBwdParams : AttentionProblem {
  HeadsTensor out, dout;
  RowTensor lse;
  RowTensor lse_low;       // data null: taken for 0
  RowTensor dlse;          // gradient that reaches lse; data null: none
  HeadsTensor dq, dk, dv;  // every element is written; dk and dv have one entry per query head
  // data null: not wanted. Every element is written (0 where masked); of packed sequences those of visible scores
  // alone, the rest are zeros already.
  ScoreBias dbias;
  // Several sequences or heads of a packed layout have elements of dbias in common, by strides of 0: it is then float
  // (or double), and their sum is added to what is there.
  bool dbias_shared = false;
  HeadNumbers dslopes, dsinks;  // data null: not wanted; every element is written
  bool deterministic = false;   // CUDA: the same bits from run to run, for some time; on the CPU they always are
};

}  // namespace xformers
