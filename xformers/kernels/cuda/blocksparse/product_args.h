// Both products as one: tiles of a result, x rows of a times the columns of b, over a depth k. Plain C++.
//
// Blocks are cut into pieces of `piece` x `piece` elements. A tile has the rows of one piece, and
//   sdd  as columns those of several stored pieces of its row, wherever they lie; its depth is that of the matrices
//   dsd  neighbouring columns of the result; its depth is that of the stored pieces of its row, one after the other
#pragma once

#include "xformers/kernels/base/divide.h"
#include "xformers/kernels/cuda/base/stream.h"
#include "xformers/kernels/params/blocksparse.h"

namespace xformers::cuda {

// Element (x, k) of an operand lies at x * x_stride + k * k_stride; one of them is 1.
struct ProductSide {
  const void* data = nullptr;
  int64_t batch_stride = 0, head_stride = 0, x_stride = 0, k_stride = 0;
  bool x_contiguous = false;
  bool aligned = false;  // all that is contiguous begins at a multiple of 16 bytes
};

struct BlockProductArgs {
  BlockLayout layout;
  bool sdd = false;
  int64_t batch = 0;
  int64_t depth = 0;  // sdd
  int64_t width = 0;  // dsd
  ProductSide a, b;
  void* out = nullptr;
  bool out_vectors = false;  // rows of the result are written 16 bytes at a time

  int piece = 0, pieces = 0;  // pieces: along a block's side
  int columns = 0;            // of a tile
  Divisor<int64_t> by_pieces{}, by_slots{}, by_strips{}, by_rows{};

  int64_t rows() const { return layout.heads * layout.block_rows; }
  int64_t tiles() const { return batch * by_pieces.size() * (sdd ? by_slots.size() : rows() * by_strips.size()); }
};

// Cuts blocks into pieces and the result into tiles.
inline void cut_into_tiles(BlockProductArgs& args, int piece, int columns) {
  args.piece = piece;
  args.pieces = static_cast<int>(args.layout.block / piece);
  args.columns = columns;
  args.by_pieces = Divisor<int64_t>(args.pieces);
  // Row r of blocks has tiles from floor(pieces before it / pieces per tile) + r on; so none has too few.
  args.by_slots = Divisor<int64_t>(args.layout.nnz * args.pieces / (columns / piece) + args.rows());
  args.by_strips =
      Divisor<int64_t>((args.width + columns - 1) / columns > 0 ? (args.width + columns - 1) / columns : 1);
  args.by_rows = Divisor<int64_t>(args.rows());
}

// One kernel per type of elements; a piece is the widest of 16 ... 128 that divides a block.
void block_product_bf16(BlockProductArgs args, const Stream& where);
void block_product_fp16(BlockProductArgs args, const Stream& where);
void block_product_fp32(BlockProductArgs args, const Stream& where);
void block_product_fp64(BlockProductArgs args, const Stream& where);

}  // namespace xformers::cuda
