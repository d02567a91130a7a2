// What the backward kernels get beside the caller's parameters.
#pragma once

#include "xformers/kernels/base/philox.h"
#include "xformers/kernels/params/attention.h"

namespace xformers::cuda {

struct BwdArgs {
  AttentionBwdParams p;
  int64_t tiles = 0;         // key tiles per (batch row, head), at most
  int64_t query_blocks = 0;  // blocks of queries per (batch row, head) in dq_sum, at most
  int heads_at_once = 1;     // heads whose key tiles are launched in turns
  int splits = 1;            // parts in which the queries of a key tile are worked on
  bool aligned = false;      // rows of q, k, v and dout in units of 16 bytes
  bool aligned_dq = false, aligned_dkv = false, aligned_dbias = false;  // and those of the gradients
  // Row statistics of prepare_backward, [batch, num_heads, seqlen_q], float, or double for fp64.
  void* lse = nullptr;        // in units of log2(e) for tensor cores; +inf where a query sees no key
  void* delta = nullptr;      // rowsum(dout * out) - dlse
  float* dq_sum = nullptr;    // [batch, num_heads, query_blocks, dq_rows * head_dim], a block in the order of DqOrder
  int* turns = nullptr;       // [batch, num_heads, query_blocks], zeros; null: sums in any order
  int* tiles_done = nullptr;  // [batch, num_heads], zeros: key tiles (in parts, where split) that have added to dq_sum
  float* partial = nullptr;   // splits > 1: [batch, num_heads, tiles, splits][dk, dv][block_n * head_dim]
  float scale_log2 = 0;       // softmax_scale * log2(e)
  double kept = 1;            // 1 / (1 - p); where p is 1, 0
  DropRule drop_rule = {};    // of p
  // What dropout makes of the row statistics: lse - lse_shift (in the units above), delta * delta_factor.
  double lse_shift = 0, delta_factor = 1;
};

}  // namespace xformers::cuda
