// The backward kernel's argument.
#pragma once

#include <cuda.h>

#include "xformers/kernels/cuda/attention/bwd_args.h"
#include "xformers/kernels/cuda/attention/softmax.cuh"

namespace xformers::cuda::sm90 {

struct BwdGrid : BwdArgs {
  CUtensorMap q_map, k_map, v_map, dout_map;  // [batch, groups, heads, rows, dims]
  int heads = 0, all_tiles = 0;               // of all batch rows
  ScoreUnit unit;                             // of products of q and k, or, where something changes them, of scores
  // Of scored policies:
  CUtensorMap bias_map;       // [sequences, groups, heads, queries, keys]
  bool has_bias_row = false;  // the bias is the same for all queries
  bool drops = false;

  explicit BwdGrid(const BwdArgs& args) : BwdArgs(args), unit(args.scale, args.scale_log2) {}
};

}  // namespace xformers::cuda::sm90
