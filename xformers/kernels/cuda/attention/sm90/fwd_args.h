// The kernel's argument, and what one tile of rows is.
#pragma once

#include <cuda.h>

#include "xformers/kernels/cuda/attention/fwd_args.h"
#include "xformers/kernels/cuda/attention/softmax.cuh"

namespace xformers::cuda::sm90 {

struct FwdGrid : FwdArgs {
  CUtensorMap q_map, k_map, v_map;  // [batch, groups, heads, rows, dims]
  int heads = 0, all_tiles = 0;     // of all batch rows
  int short_tiles = 0;              // of a head: those that come last
  int bundle = 1;                   // heads whose tiles come together, so that their K and V stay in L2
  ScoreUnit unit;                   // of products of q and k, or, where something changes them, of scores
  int page_part = 0;                // of paged or blocked keys: those that one box has
  // Of scored policies:
  CUtensorMap bias_map;       // [sequences, groups, heads, queries, keys]
  float scale = 1;            // of products, where `unit` is that of scores
  bool scales = false;        // and nothing else applies it
  bool has_bias_row = false;  // the bias is the same for all queries
  bool drops = false;

  explicit FwdGrid(const FwdArgs& args)
      : FwdArgs(args), unit(static_cast<float>(args.p.softmax_scale), args.scale_log2) {}
};

}  // namespace xformers::cuda::sm90
