// How many tiles a grid must have room for.
#pragma once

#include <algorithm>
#include <cstdint>

#include "xformers/kernels/params/attention.h"

namespace xformers::cuda {

// Tiles of `tile_rows` rows; the lengths of packed sequences are known on the GPU alone.
inline int64_t max_tiles(int64_t rows, const SeqLayout& seq, int tile_rows) {
  return seq.packed() ? rows / tile_rows + seq.num_sequences : (rows + tile_rows - 1) / tile_rows;
}

// Of all packed rows with no regard to where sequences begin.
inline int64_t spanning_tiles(int64_t rows, int tile_rows) { return (rows + tile_rows - 1) / tile_rows; }

// How many heads' tiles should be worked on together: the largest divisor of `heads` whose K and V take no more than a
// third of an L2 cache of 48 MiB.
inline int heads_at_a_time(int64_t heads, const AttentionShape& shape) {
  constexpr int64_t kBytes = int64_t{16} << 20, kMost = 256;
  const int64_t each = std::max<int64_t>(shape.seqlen_k * (shape.head_dim + shape.head_dim_v) * 2, 1);
  int64_t bundle = std::clamp<int64_t>(kBytes / each, 1, std::clamp<int64_t>(heads, 1, kMost));
  while (heads % bundle != 0) --bundle;
  return static_cast<int>(bundle);
}

}  // namespace xformers::cuda
