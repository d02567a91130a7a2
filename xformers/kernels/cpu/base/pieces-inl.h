// Element-wise work on rows, cut into pieces.
#pragma once

#include "xformers/kernels/cpu/base/blocks.h"
#include "xformers/kernels/cpu/base/rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xformers::cpu::XFORMERS_ISA_NAMESPACE {

// Rows are cut into pieces that stay in the first-level cache between the outputs of one piece.
constexpr int64_t kPiece = 1024;

// fn(row, begin, end) on all pieces of `piece` elements, in parallel.
template <class Fn>
void for_each_piece(const Threads& threads, int64_t rows, int64_t width, int64_t bytes_per_element, const Fn& fn,
                    int64_t piece = kPiece) {
  const int64_t pieces = (width + piece - 1) / piece;
  const int64_t piece_bytes = (width < piece ? width : piece) * bytes_per_element;
  for_each_block(threads, rows * pieces, piece_bytes, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t begin = i % pieces * piece;
      fn(i / pieces, begin, min_of(begin + piece, width));
    }
    finish_streams();
  });
}

}  // namespace xformers::cpu::XFORMERS_ISA_NAMESPACE
HWY_AFTER_NAMESPACE();
