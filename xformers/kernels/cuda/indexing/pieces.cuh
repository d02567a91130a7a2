// Rows cut into pieces, one for each block: kItems vectors per thread. What is to know about a row is looked up by
// every piece, which costs less than to keep blocks that wait between their pieces.
#pragma once

#include <algorithm>

#include "xformers/kernels/base/divide.h"
#include "xformers/kernels/cuda/base/launch.h"

namespace xformers::cuda {

inline constexpr int kPieceThreads = 256, kPieceBlocks = 4;  // at most, of a block; blocks per multiprocessor

// The pieces of all rows as one line.
template <int kItems>
struct Pieces {
  int64_t vectors = 0;  // of a row
  int64_t per_row = 0, all = 0;
  Divisor<int64_t> by_row;  // by per_row

  // Threads of a block for rows of so many vectors.
  static int threads_for(int64_t vectors) {
    return static_cast<int>(std::clamp<int64_t>((vectors + kItems * 32 - 1) / (kItems * 32) * 32, 32, kPieceThreads));
  }

  Pieces() = default;
  Pieces(int64_t rows, int64_t vectors_of_row, int threads)
      : vectors(vectors_of_row), per_row((vectors + threads * kItems - 1) / (threads * kItems)), all(rows * per_row) {
    by_row = Divisor<int64_t>(per_row);
  }

  struct Piece {
    int64_t row, index;  // index: which of the row
  };
  __device__ __forceinline__ Piece at(int64_t block) const {
    const int64_t row = by_row.quotient(block);
    return {row, block - row * per_row};
  }
};

// Whether rows of this width are made of 16-byte vectors.
inline bool in_vectors(int64_t width, DType dtype) { return width % (16 / static_cast<int64_t>(size_of(dtype))) == 0; }

}  // namespace xformers::cuda
