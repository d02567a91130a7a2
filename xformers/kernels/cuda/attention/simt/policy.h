// Tile sizes that the host counts by. Plain C++.
#pragma once

#include <cstdint>

namespace xformers::cuda::simt {

inline constexpr int64_t kNarrowDim = 128;  // results of up to so many dims come in wide tiles

// Queries, and keys, of the backward's tiles.
constexpr int backward_tile(int64_t widest_dim) { return widest_dim <= kNarrowDim ? 32 : 16; }

}  // namespace xformers::cuda::simt
