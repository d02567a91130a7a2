// Operands of products out of a tile in shared memory (tile.cuh), aligned to 128 bytes, by addresses that cost an
// instruction at most: chunks are permuted by bits that rows don't carry into, so that an exclusive or of one address
// with a constant, and an offset in the instruction, lead to every operand.
#pragma once

#include "xformers/kernels/cuda/attention/sm80/tile.cuh"

namespace xformers::cuda::sm80 {

// Of 16 x 16 elements, four matrices of 8 x 8: whether the second one is that of the next rows or of the next chunk.
enum class Lanes { kRowsFirst, kChunksFirst };

// From a row on that is a multiple of 8.
template <int kDim, Lanes kLanes>
class TileOperand {
  using Layout = TileLayout<kDim>;
  static constexpr int kPairs = (Layout::kRowBytes % 128 == 0 ? 8 : 4) / 2;  // of chunks that are permuted together

 public:
  __device__ __forceinline__ TileOperand(uint32_t tile, int row) {
    const int lane = thread_again() % 32;
    constexpr bool kRows = kLanes == Lanes::kRowsFirst;
    const int lane_row = kRows ? lane & 15 : (lane & 7) + (lane >> 4) * 8, chunk = kRows ? lane >> 4 : lane >> 3 & 1;
    address_ = tile + row * Layout::kRowBytes + Layout::offset(lane_row, chunk);
  }
  // Columns [16 pair, + 16) of the rows `rows` further down.
  __device__ __forceinline__ void load(uint32_t (&to)[4], int rows, int pair) const {
    load_matrices(to, at(rows, pair));
  }
  __device__ __forceinline__ void load_transposed(uint32_t (&to)[4], int rows, int pair) const {
    load_matrices_transposed(to, at(rows, pair));
  }

 private:
  __device__ __forceinline__ uint32_t at(int rows, int pair) const {
    return (address_ ^ pair % kPairs * 32) + pair / kPairs * (kPairs * 32) + rows * Layout::kRowBytes;
  }
  uint32_t address_;
};

// Chunks of a tile's rows, counted from `chunk` of `row`. kGrouped: adding a chunk to it carries nothing into the next
// group of chunks that are permuted together.
template <int kDim, bool kGrouped>
class TileChunks {
  using Layout = TileLayout<kDim>;
  static constexpr int kGroup = Layout::kRowBytes % 128 == 0 ? 8 : 4;

 public:
  __device__ __forceinline__ TileChunks(uint32_t tile, int row, int chunk)
      : tile_(tile), address_(tile + Layout::offset(row, chunk)), row_(row), chunk_(chunk) {}
  // `rows`: further down, a multiple of 8.
  __device__ __forceinline__ uint32_t at(int rows, int chunk) const {
    if constexpr (!kGrouped) return tile_ + Layout::offset(row_ + rows, chunk_ + chunk);
    return (address_ ^ chunk % kGroup * 16) + chunk / kGroup * (kGroup * 16) + rows * Layout::kRowBytes;
  }

 private:
  uint32_t tile_, address_;
  int row_, chunk_;
};

}  // namespace xformers::cuda::sm80
