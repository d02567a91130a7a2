// What the kernels of 2:4 sparsity are asked to do. Of every 4 x 4 tile of a matrix at most two values per row and per
// column are kept, so that the matrix and its transpose both have two zeros in any four neighbours. Tiles at the end
// may be cut off by the matrix. Strides in elements.
//
// A packed matrix [rows, cols] holds two values for any four columns, and where they stood:
//   values  [rows to 32, (cols to 64) / 2]: of the four columns 0 ... 3, a lone value of 0 or 1 goes to the first slot,
//   a
//           lone one of 2 or 3 to the second, two in rising order; what is missing is 0
//   meta    16-bit words; a nibble, column of the first slot | column of the second << 2, always rising, for four
//           columns; a word for 16, the lowest nibble first. Words lie as sparse tensor-core instructions read them:
//           two of rows r and r + 8 side by side (Sparse24Packed::meta_word)
// Padding holds value 0 and columns 0 and 1.
#pragma once

#include <cstdint>

#include "xformers/kernels/base/activation.h"
#include "xformers/kernels/base/dtype.h"
#include "xformers/kernels/base/inline.h"
#include "xformers/kernels/params/rows.h"

namespace xformers {

// In which order the values of a tile are visited; one is kept if its row and its column still have room. Among equals
// the first in row-major order comes first, -0 equals +0, NaN comes before +inf.
enum class Sparse24Rule : uint8_t {
  kLargest,     // in falling order
  kLargestAbs,  // in falling order of magnitude
  kCausal1122,  // row by row from the top, rows in falling order; rows have room for 1, 1, 2 and 2
};

struct Sparse24Packed {
  void* values = nullptr;    // null: not wanted
  int64_t value_stride = 0;  // between packed rows
  uint16_t* meta = nullptr;
  int64_t meta_block = 0;  // words between blocks of 32 columns
  int64_t meta_group = 0;  // words between groups of 128 rows; 64 lie between those of 32

  // Where the word of 16 columns, [row, word], lies.
  XFORMERS_INLINE int64_t meta_word(int64_t row, int64_t word) const {
    const int64_t moved = row % 8 * 4 + row % 32 / 8;  // rows r and r + 8 become neighbours
    return word / 2 * meta_block + row / 128 * meta_group + row % 128 / 32 * 64 + (moved / 2 * 2 + word % 2) * 2 +
           moved % 2;
  }
};

// Which values of a matrix are kept: a cell of four 16-bit masks (top left, top right, bottom left, bottom right) for 8
// x 8 values, bit 4 * row + column of each. [4 ceil(rows / 32), 8 ceil(cols / 64)] cells.
struct Sparse24Mask {
  uint16_t* cells = nullptr;
  int64_t row_stride = 0;  // in masks, of which a cell is four, between rows of cells
};

// x [rows, cols], or activation(x), or silu(x) * x2 where there is an x2, packed; its transpose too.
struct Sparse24PackParams {
  DType dtype = DType::kFloat32;
  int64_t rows = 0, cols = 0;
  Rows x{};
  Activation activation = Activation::kNone;  // of the named ones kRelu, kSquaredRelu, kGelu and kGeluExact
  Rows x2{};                                  // no data: none
  Sparse24Rule rule = Sparse24Rule::kLargest;
  Sparse24Mask mask{};      // written; read where
  bool mask_given = false;  // it says what is kept
  Sparse24Packed packed{}, packed_t{};
};

// out = kept * mul1, dropped * mul0; exactly 0 for mul0 = 0. x has one of its strides 1, out [rows, cols] is
// contiguous.
struct Sparse24DenseParams {
  DType dtype = DType::kFloat32;
  int64_t rows = 0, cols = 0;
  const void* x = nullptr;
  int64_t row_stride = 0, col_stride = 1;
  Sparse24Mask mask{};
  double mul0 = 0, mul1 = 1;
  void* out = nullptr;
};

// Gradients of activation(x), or of silu(x) * x2, where the mask keeps a value, 0 elsewhere; all [rows, cols].
struct Sparse24ActivationBwdParams {
  DType dtype = DType::kFloat32;
  int64_t rows = 0, cols = 0;
  Activation activation = Activation::kNone;
  Rows x{}, x2{}, dout{};
  Sparse24Mask mask{};
  Rows dx{}, dx2{};  // dx2: where there is an x2
};

// packed [rows, cols] as a matrix again, out with its rows `out.stride` apart.
struct Sparse24UnpackParams {
  DType dtype = DType::kFloat32;
  int64_t rows = 0, cols = 0;
  Sparse24Packed packed{};
  Rows out{};
};

// out[m, n] = activation(sum over k of a[m, k] * b[k, n] + bias), in fp32 (fp64 for fp64) with one rounding.
struct Sparse24ProductParams {
  DType dtype = DType::kFloat32;
  int64_t m = 0, n = 0, k = 0;
  Sparse24Packed a{};  // [m, k]
  const void* b = nullptr;
  int64_t b_row = 0, b_col = 0;  // strides of k and n; one of them is 1
  const void* bias = nullptr;    // null: none
  bool bias_per_row = true;      // [m], else [n]
  Activation activation = Activation::kNone;
  void* out = nullptr;
  int64_t out_stride = 0;       // between rows, [m, n]; or, where
  bool out_transposed = false;  // it is [n, m], between the rows of that
};

}  // namespace xformers
