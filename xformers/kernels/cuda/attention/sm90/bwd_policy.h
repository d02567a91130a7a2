// Tile sizes of Hopper's backward kernels: data, chosen on the host, handed to a kernel as one number. Plain C++.
#pragma once

#include "xformers/kernels/cuda/attention/sm90/tile_rows.h"

namespace xformers::cuda::sm90 {

// Gradients that a kernel sums up. From head dim 192 on registers hold one sum over queries, so that there are two
// kernels: dv needs no dP, but S and P are made twice (6 products in place of 5).
enum class BwdSums { kAll, kDv, kDkDq };

// One warpgroup copies, two others have 64 keys of a tile each.
struct BwdPolicy {
  int head_dim, head_dim_v;  // padded to these
  int block_m;               // queries per step
  int registers;             // of a thread that multiplies; those of one that copies have what is left of 168 each
  BwdSums sums = BwdSums::kAll;
  int q_stages = 2, dout_stages = 2, k_stages = 2, v_stages = 2, ds_stages = 2;
  int q_pieces = 1;     // stages that Q of a step takes, with a part of the dims each: freed one by one
  bool scored = false;  // bias, dropout, ALiBi
  int bias_stages = 0;  // of a bias, each consumer's by itself

  static constexpr int kConsumers = 2, kBlockN = 64 * kConsumers;

  constexpr int threads() const { return 128 * (1 + kConsumers); }
  constexpr int producer_registers() const { return 3 * 168 - kConsumers * registers; }
  constexpr bool has_dv() const { return sums != BwdSums::kDkDq; }
  constexpr bool has_dk() const { return sums != BwdSums::kDv; }  // and dq
  constexpr int piece_dims() const { return head_dim / q_pieces; }
  constexpr int q_bytes() const { return tile_bytes(block_m, piece_dims()); }
  constexpr int dout_bytes() const { return tile_bytes(block_m, head_dim_v); }
  constexpr int k_bytes() const { return tile_bytes(kBlockN, head_dim); }
  constexpr int v_bytes() const { return tile_bytes(kBlockN, head_dim_v); }
  constexpr int ds_bytes() const { return tile_bytes(kBlockN, block_m); }
  constexpr int bias_bytes() const { return tile_bytes(block_m, 64); }  // of a consumer
  // dq: consumers part the dims of 64 queries, or the queries of 128.
  constexpr bool parts_dims() const { return block_m == 64; }
  // Halves of dims are panels, or what is left is zeros, or (192) one of three panels is halved.
  constexpr int dq_dims() const { return head_dim == 96 ? 128 : head_dim; }
};

// Those of a pair of head dims side by side.
inline constexpr BwdPolicy kBwdPolicies[] = {
    {.head_dim = 64, .head_dim_v = 64, .block_m = 128, .registers = 240},
    {.head_dim = 96, .head_dim_v = 96, .block_m = 64, .registers = 232},
    {.head_dim = 128, .head_dim_v = 128, .block_m = 64, .registers = 232},
    {.head_dim = 192, .head_dim_v = 128, .block_m = 64, .registers = 232, .sums = BwdSums::kDv},
    {.head_dim = 192,
     .head_dim_v = 128,
     .block_m = 64,
     .registers = 232,
     .sums = BwdSums::kDkDq,
     .k_stages = 1,
     .ds_stages = 1},
    {.head_dim = 192, .head_dim_v = 192, .block_m = 64, .registers = 232, .sums = BwdSums::kDv},
    {.head_dim = 192,
     .head_dim_v = 192,
     .block_m = 64,
     .registers = 232,
     .sums = BwdSums::kDkDq,
     .k_stages = 1,
     .v_stages = 1,
     .ds_stages = 1},
    {.head_dim = 256, .head_dim_v = 256, .block_m = 64, .registers = 232, .sums = BwdSums::kDv, .k_stages = 1},
    // 224 KiB of tiles: a step's Q is two of three stages.
    {.head_dim = 256,
     .head_dim_v = 256,
     .block_m = 64,
     .registers = 240,
     .sums = BwdSums::kDkDq,
     .q_stages = 3,
     .dout_stages = 1,
     .k_stages = 1,
     .v_stages = 1,
     .ds_stages = 1,
     .q_pieces = 2},
    // What changes scores: 16 KiB of a bias a step. At 64 a step of 128 queries would spill.
    {.head_dim = 64, .head_dim_v = 64, .block_m = 64, .registers = 232, .scored = true, .bias_stages = 2},
    {.head_dim = 96,
     .head_dim_v = 96,
     .block_m = 64,
     .registers = 232,
     .v_stages = 1,
     .scored = true,
     .bias_stages = 2},
    {.head_dim = 128,
     .head_dim_v = 128,
     .block_m = 64,
     .registers = 232,
     .v_stages = 1,
     .scored = true,
     .bias_stages = 2},
    {.head_dim = 192,
     .head_dim_v = 128,
     .block_m = 64,
     .registers = 232,
     .sums = BwdSums::kDv,
     .scored = true,
     .bias_stages = 2},
    {.head_dim = 192,
     .head_dim_v = 128,
     .block_m = 64,
     .registers = 232,
     .sums = BwdSums::kDkDq,
     .k_stages = 1,
     .v_stages = 1,
     .ds_stages = 1,
     .scored = true,
     .bias_stages = 2},
    {.head_dim = 192,
     .head_dim_v = 192,
     .block_m = 64,
     .registers = 232,
     .sums = BwdSums::kDv,
     .scored = true,
     .bias_stages = 2},
    {.head_dim = 192,
     .head_dim_v = 192,
     .block_m = 64,
     .registers = 232,
     .sums = BwdSums::kDkDq,
     .k_stages = 1,
     .v_stages = 1,
     .ds_stages = 1,
     .scored = true,
     .bias_stages = 1},
    {.head_dim = 256,
     .head_dim_v = 256,
     .block_m = 64,
     .registers = 232,
     .sums = BwdSums::kDv,
     .k_stages = 1,
     .scored = true,
     .bias_stages = 2},
    {.head_dim = 256,
     .head_dim_v = 256,
     .block_m = 64,
     .registers = 240,
     .sums = BwdSums::kDkDq,
     .dout_stages = 1,
     .k_stages = 1,
     .v_stages = 1,
     .ds_stages = 1,
     .q_pieces = 2,
     .scored = true,
     .bias_stages = 1},
};

constexpr int bwd_policy_of(int head_dim, int head_dim_v, bool scored, bool has_dk) {
  int index = 0;
  const auto is = [&](const BwdPolicy& each) {
    return each.head_dim == head_dim && each.head_dim_v == head_dim_v && each.scored == scored &&
           (has_dk ? each.has_dk() : each.has_dv());
  };
  while (!is(kBwdPolicies[index])) ++index;
  return index;
}

}  // namespace xformers::cuda::sm90
