// Which tile of a block-sparse product a thread block has, and where its operands and its result lie. Offsets of an
// element (x, k) are sums of one for x and one for k, both in tables per piece: kernels know nothing else of layouts.
#pragma once

#include "xformers/kernels/cuda/blocksparse/product_args.h"
#include "xformers/kernels/cuda/csr/pattern.cuh"

namespace xformers::cuda {

struct ProductTile {
  int64_t batch, row, head;  // row: of blocks, of all heads
  int sub_row;               // piece of the block
  Places places;             // stored blocks of the row
  int64_t first;             // sdd: stored piece of the row; dsd: column
  int columns;               // that are there, at most args.columns; 0: there is nothing to do
  int64_t depth;

  // By whole warps.
  __device__ __forceinline__ explicit ProductTile(const BlockProductArgs& args) {
    const BlockLayout& layout = args.layout;
    const auto [task, piece] = args.by_pieces.divide(blockIdx.x);
    sub_row = static_cast<int>(piece);
    if (args.sdd) {
      const auto [element, slot] = args.by_slots.divide(task);
      const int per_tile = args.columns / args.piece;
      const auto start = [&](int r) {
        return static_cast<int64_t>(inside(layout.row_offsets[r], layout.nnz + 1)) * args.pieces / per_tile + r;
      };
      batch = element;
      row = last_row_by_warp(static_cast<int>(args.by_rows.size()), slot, start);
      places = places_of_row(layout.row_offsets, row, layout.nnz);
      // The pieces of a row in equal shares.
      const int64_t chunk = slot - start(static_cast<int>(row)), stored = int64_t{places.count()} * args.pieces;
      const int64_t chunks = (stored + per_tile - 1) / per_tile;
      const bool there = chunk >= 0 && chunk < chunks;
      first = there ? chunk * stored / chunks : 0;
      columns = there ? static_cast<int>((chunk + 1) * stored / chunks - first) * args.piece : 0;
      depth = args.depth;
    } else {
      const auto [rest, strip] = args.by_strips.divide(task);
      const auto [element, r] = args.by_rows.divide(rest);
      batch = element, row = r;
      places = places_of_row(layout.row_offsets, row, layout.nnz);
      first = strip * args.columns;
      columns = static_cast<int>(args.width - first < args.columns ? args.width - first : args.columns);
      depth = int64_t{places.count()} * layout.block;
    }
    head = row / layout.block_rows;
  }

  // Of x 0 of this tile, in a.
  __device__ __forceinline__ int64_t a_base(const BlockProductArgs& args) const {
    const int64_t in_head = args.sdd ? (row - head * args.layout.block_rows) * args.layout.block : 0;
    return batch * args.a.batch_stride + head * args.a.head_stride +
           (in_head + int64_t{sub_row} * args.piece) * args.a.x_stride;
  }
  __device__ __forceinline__ int64_t b_base(const BlockProductArgs& args) const {
    return batch * args.b.batch_stride + head * args.b.head_stride;
  }

  struct Column {
    int64_t b, out;  // of the piece's first x in b, and of its first element in the result
  };
  // Piece `i` of the tile's columns.
  __device__ __forceinline__ Column column(const BlockProductArgs& args, int i) const {
    const BlockLayout& layout = args.layout;
    const int64_t row_in_block = int64_t{sub_row} * args.piece;
    if (!args.sdd) {
      const int64_t x = first + int64_t{i} * args.piece;
      return {x * args.b.x_stride,
              ((batch * args.by_rows.size() + row) * layout.block + row_in_block) * args.width + x};
    }
    const int64_t stored = first + i;
    const auto [block, sub_column] = args.by_pieces.divide(stored);
    const int place = inside(places.begin + static_cast<int>(block), layout.nnz);
    const int64_t x = sub_column * args.piece;
    return {(inside(layout.column_indices[place], layout.block_columns) * layout.block + x) * args.b.x_stride,
            ((batch * layout.nnz + place) * layout.block + row_in_block) * layout.block + x};
  }
  // Elements from one row of the result to the next.
  static __device__ __forceinline__ int64_t out_stride(const BlockProductArgs& args) {
    return args.sdd ? args.layout.block : args.width;
  }

  struct Depth {
    int64_t a, b;
  };
  // Where k, a multiple of a length that divides a piece or (sdd) anything, lies in a and in b; k < depth.
  __device__ __forceinline__ Depth at_depth(const BlockProductArgs& args, int64_t k) const {
    if (args.sdd) return {k * args.a.k_stride, k * args.b.k_stride};
    const BlockLayout& layout = args.layout;
    const unsigned block = static_cast<unsigned>(layout.block);
    const unsigned which = static_cast<unsigned>(k) / block, in_block = static_cast<unsigned>(k) % block;
    const int place = places.begin + static_cast<int>(which);
    const int stored = layout.places ? inside(layout.places[place], layout.nnz) : place;
    const int column = inside(layout.column_indices[place], layout.block_columns);
    return {stored * layout.block * layout.block + in_block * args.a.k_stride,
            (column * layout.block + in_block) * args.b.k_stride};
  }
};

}  // namespace xformers::cuda
