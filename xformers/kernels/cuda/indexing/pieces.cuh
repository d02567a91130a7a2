// Rows cut into pieces of kItems vectors per thread. As many blocks as the GPU holds take a run of pieces each, so
// that what is to know about a row is looked up once.
#pragma once

#include <algorithm>

#include "xformers/kernels/cuda/base/device.h"
#include "xformers/kernels/cuda/base/divide.h"
#include "xformers/kernels/cuda/base/launch.h"

namespace xformers::cuda {

inline constexpr int kPieceThreads = 256, kPieceBlocks = 2;  // at most, of a block; blocks per multiprocessor

// The pieces of all rows as one line, of which every block takes `run`.
template <int kItems>
struct Pieces {
  int threads = 32;
  int64_t vectors = 0;  // of a row
  int64_t per_row = 0, all = 0, run = 0;
  Divisor by_row;  // by per_row

  Pieces() = default;
  Pieces(int64_t rows, int64_t vectors_of_row) : vectors(vectors_of_row) {
    threads =
        static_cast<int>(std::clamp<int64_t>((vectors + kItems * 32 - 1) / (kItems * 32) * 32, 32, kPieceThreads));
    per_row = (vectors + threads * kItems - 1) / (threads * kItems);
    all = rows * per_row;
    by_row = Divisor(per_row);
    const int64_t held = int64_t{kPieceBlocks * kPieceThreads} / threads * current_device().multiprocessors;
    run = std::max<int64_t>(1, (all + held - 1) / held);
  }
  template <class Args>
  void launch_over(void (*kernel)(Args), const Args& args, cudaStream_t stream) const {
    launch<0>(kernel, (all + run - 1) / run, 1, threads, stream, args);
  }

  // fn(row, piece, whether the row is another one than before) for the block's run.
  template <class Fn>
  __device__ __forceinline__ void for_each(const Fn& fn) const {
    const int64_t begin = blockIdx.x * run, end = min(begin + run, all);
    int64_t row = by_row.quotient(begin), piece = begin - row * per_row;
    bool other_row = true;
    for (int64_t i = begin; i < end; ++i) {
      fn(row, piece, other_row);
      other_row = ++piece == per_row;
      if (other_row) piece = 0, ++row;
    }
  }
};

// Whether rows of this width are made of 16-byte vectors.
inline bool in_vectors(int64_t width, DType dtype) { return width % (16 / static_cast<int64_t>(size_of(dtype))) == 0; }

}  // namespace xformers::cuda
