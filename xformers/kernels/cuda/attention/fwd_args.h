// What the forward kernels get beside the caller's parameters.
#pragma once

#include "xformers/kernels/base/divide.h"
#include "xformers/kernels/base/philox.h"
#include "xformers/kernels/params/attention.h"

namespace xformers::cuda {

inline constexpr int kMostSplits = 128;

// The softmax of a row over one part of its keys (split_merge.cuh).
struct alignas(8) PartStats {
  float row_max;  // of its scores, in natural units; -inf where all are hidden
  float row_sum;  // of exp(score - row_max)
};

struct FwdArgs {
  AttentionFwdParams p;
  Divisor<uint32_t> packed_heads{1};           // size(): heads of a group that share the rows of a tile (rows.cuh)
  int64_t tiles = 0;                           // row tiles per (batch row, head or group), at most
  int heads_at_once = 1;                       // (batch row, head or group)s whose row tiles are launched in turns
  bool aligned_q = false, aligned_kv = false;  // rows in units of 16 bytes
  bool aligned_out = false;                    // rows in units of two elements
  bool chunked_out = false;                    // rows in units of 16 bytes
  int policy = 0;                              // of sm90: its tile sizes
  int* next_tile = nullptr;                    // of sm90: where tiles of packed sequences are counted
  int num_splits = 1;
  int part_steps = 0;            // blocks of keys per split; 0: each row tile's in num_splits equal parts
  bool parts_meet = false;       // of decode: the parts of a tile are one cluster, which leaves no partial results
  int64_t total_rows = 0;        // batch * num_heads * seqlen_q: rows of one split's partial results
  float* out_partial = nullptr;  // [num_splits, total_rows, head_dim_v], each divided by its sum; null: not split
  PartStats* stats_partial = nullptr;  // [num_splits, total_rows]
  float scale_log2 = 0;                // softmax_scale * log2(e)
  double kept = 1;                     // 1 / (1 - p)
  DropRule drop_rule = {};             // of p
};

}  // namespace xformers::cuda
