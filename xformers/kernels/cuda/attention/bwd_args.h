// What the backward kernels get beside the caller's parameters.
#pragma once

#include "xformers/kernels/base/philox.h"
#include "xformers/kernels/params/attention.h"
#include "xformers/kernels/params/band.h"

namespace xformers::cuda {

// Of tiles of keys that add to a block of queries: one alone, which has their gradient whole.
XFORMERS_INLINE bool one_tile(RangeOf<int> tiles) { return tiles.end - tiles.begin == 1; }

inline constexpr int kStatisticsRows = 64;  // queries that a block of prepare_backward works on

// What is largest among kStatisticsRows queries of a head.
struct RowExtremes {
  float lse;   // |lse|, natural; infinite where one is NaN
  float dout;  // fp16: the sum over |dout|, plus |delta|, of rows that are finite
};

// What a tile has summed up of dS * distance, the gradient of a slope but for the sign.
struct SlopePart {
  double sum;
  int64_t sequence;
};

// Tiles of keys that block masks show to many queries, in parts that the blocks behind those of all tiles work on
// (sm80/bwd_parts.cuh): how long they are is known on the GPU alone.
inline constexpr int kLongParts = 256;  // of all tiles
struct LongPart {
  int head_of_all, tile, part, parts;  // parts 0: there is none
  int place;                           // of the tile's first part among all
};
struct LongTiles {
  LongPart* parts = nullptr;  // [kLongParts], zeros; null: no tile is parted
  int* counts = nullptr;      // [2], zeros: places that are taken, tiles that have been asked
  int* done = nullptr;        // [kLongParts], zeros: parts that are done, at the place of their tile
  int steps = 0;              // of queries, of a part
};

struct BwdArgs {
  AttentionBwdParams p;
  int64_t tiles = 0;         // key tiles per (batch row, head), at most
  int64_t query_blocks = 0;  // blocks of queries per (batch row, head) in dq_sum, at most
  int heads_at_once = 1;     // heads whose key tiles are launched in turns
  int splits = 1;            // parts in which the queries of a key tile are worked on
  bool aligned = false;      // rows of q, k, v and dout in units of 16 bytes
  bool aligned_dq = false, aligned_dkv = false, aligned_dbias = false;  // and those of the gradients
  int block_n = 0, dq_rows = 0, head_dim = 0;  // of the instance: keys per tile; queries per block of dq_sum; its dim
  // Row statistics of prepare_backward, [batch, num_heads, seqlen_q], float, or double for fp64.
  void* lse = nullptr;              // in units of log2(e) for tensor cores; +inf where a query sees no key
  void* delta = nullptr;            // rowsum(dout * out) - dlse
  RowExtremes* extremes = nullptr;  // [batch, num_heads, blocks of kStatisticsRows]; or null
  float* dq_sum = nullptr;    // [batch, num_heads, query_blocks, dq_rows * head_dim], a block in the order of DqOrder
  int* turns = nullptr;       // [batch, num_heads, query_blocks], zeros; null: sums in any order
  int* next_tile = nullptr;   // of sm90: where tiles that differ are counted, 0
  int* tiles_done = nullptr;  // [batch, num_heads], zeros: key tiles (in parts, where split) that have added to dq_sum
  SlopePart* slope_parts = nullptr;  // [batch, num_heads, slope_parts_per_head], each written by its tile; or null
  int64_t slope_parts_per_head = 0;
  float* partial = nullptr;  // splits > 1: [batch, num_heads, tiles, splits][dk, dv][block_n * head_dim]
  // Every block of queries is seen by one tile, which writes dq itself; there is no dq_sum then.
  bool one_tile = false;
  // Tiles that span sequences (prepare_backward.h), else null. Rows count from the first one of the tensors.
  RangeOf<int>* key_queries = nullptr;  // [seqlen_k]: queries that see the key
  RangeOf<int>* block_tiles = nullptr;  // [query_blocks]: tiles with keys that any query of the block sees
  float scale = 0, scale_log2 = 0;      // softmax_scale; times log2(e)
  double kept = 1;                      // 1 / (1 - p); where p is 1, 0
  DropRule drop_rule = {};              // of p
  // What dropout makes of the row statistics: lse - lse_shift (in the units above), delta * delta_factor.
  double lse_shift = 0, delta_factor = 1;
  LongTiles long_tiles;  // partial is then [kLongParts][dk, dv][block_n * head_dim]
};

// Where a tile, or a part of one, leaves its part of the gradient of its head's slope.
XFORMERS_INLINE SlopePart& slope_part(const BwdArgs& args, int64_t head_of_all, int64_t part) {
  return args.slope_parts[head_of_all * args.slope_parts_per_head + part];
}

}  // namespace xformers::cuda
