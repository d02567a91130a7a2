// The backward kernel's argument.
#pragma once

#include <cuda.h>

#include "xformers/kernels/cuda/attention/bwd_args.h"

namespace xformers::cuda::sm90 {

struct BwdGrid : BwdArgs {
  CUtensorMap q_map, k_map, v_map, dout_map;  // [batch, groups, heads, rows, dims]
  int heads = 0, all_tiles = 0;               // of all batch rows

  explicit BwdGrid(const BwdArgs& args) : BwdArgs(args) {}
};

}  // namespace xformers::cuda::sm90
