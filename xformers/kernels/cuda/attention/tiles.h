// How many tiles a grid must have room for.
#pragma once

#include <cstdint>

#include "xformers/kernels/params/attention.h"

namespace xformers::cuda {

// Tiles of `tile_rows` rows; the lengths of packed sequences are known on the GPU alone.
inline int64_t max_tiles(int64_t rows, const SeqLayout& seq, int tile_rows) {
  return seq.packed() ? rows / tile_rows + seq.num_sequences : (rows + tile_rows - 1) / tile_rows;
}

// Of all packed rows with no regard to where sequences begin.
inline int64_t spanning_tiles(int64_t rows, int tile_rows) { return (rows + tile_rows - 1) / tile_rows; }

}  // namespace xformers::cuda
