// One matrix product of matrices that are given as grids of tiles.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "xformers/kernels/base/error.h"

namespace xformers::ops {

using TileGrid = std::vector<std::vector<at::Tensor>>;

// out[m][n] = sum over k of a[m][k] b[k][n], as one product of the merged matrices would give it: sums in fp32 (fp64
// for fp64), one rounding. a[m][k] is [ms[m], ks[k]], b[k][n] is [ks[k], ns[n]]. Differentiable.
TileGrid tiled_matmul(const TileGrid& a, const TileGrid& b);

}  // namespace xformers::ops
