// Block-sparse products and softmax without LibTorch: every instruction set (or the GPU) and element type against plain
// loops in double, in memory that ends where the tensors end.
#include <vector>

#include "tests/kernels/blocks_support.h"
#include "tests/kernels/sparse_backend.h"

namespace xformers::testing {
namespace {

constexpr int64_t kBatch = 2, kHeads = 2, kBlockRows = 3, kBlockColumns = 2;

// Head 0: rows of 2, 0 and 1 blocks; head 1: 1, 1 and 2.
const std::vector<int32_t> kOffsets{0, 2, 2, 3, 4, 5, 7}, kBlocks{0, 1, 1, 0, 1, 0, 1};
// By columns of both heads: rows, and where their blocks are stored.
const std::vector<int32_t> kOffsetsT{0, 1, 3, 5, 7}, kRowsT{0, 0, 2, 0, 2, 1, 2}, kPlaces{0, 1, 2, 3, 5, 4, 6};
const int64_t kNnz = static_cast<int64_t>(kBlocks.size());

BlockLayout layout(int64_t block) {
  return {kHeads, kBlockRows, kBlockColumns, block, kNnz, kOffsets.data(), kBlocks.data(), nullptr};
}

// fn(i, head, block row) for every block i.
template <class Fn>
void for_each_block_of(const Fn& fn) {
  for (int64_t row = 0; row < kHeads * kBlockRows; ++row) {
    for (int32_t i = kOffsets[row]; i < kOffsets[row + 1]; ++i) fn(i, row / kBlockRows, row % kBlockRows);
  }
}

// body(dtype, block, where): blocks of 16 in every type, larger ones in one that kernels take as it is and one that
// they convert.
template <class Body>
void for_each_kind(const Body& body) {
  for_each_sparse_backend([&](const std::string& backend) {
    for (const DType dtype : kBlockDTypes) {
      for (const int64_t block : {16, 32, 48, 64, 128}) {
        if (block > 16 && dtype != DType::kBFloat16 && (block > 64 || dtype != DType::kFloat32)) continue;
        body(dtype, block, backend + " " + name_of(dtype) + " block " + std::to_string(block));
      }
    }
  });
}

// [batch * heads, rows * columns] as [batch, heads, rows, columns], or the transpose of what lies there.
HeadMatrices heads_of(const RowBuffer& matrix, int64_t rows, int64_t columns, bool transposed = false) {
  return {matrix.data(), kHeads * rows * columns, rows * columns, transposed ? 1 : columns, transposed ? rows : 1};
}

TEST(BlockSparse, Sdd) {
  for_each_kind([](DType dtype, int64_t block, const std::string& isa) {
    const int64_t rows = kBlockRows * block, columns = kBlockColumns * block;
    for (const int64_t depth : {0, 1, 17, 64, 300}) {
      if (block > 16 && depth != 17 && depth != 64) continue;
      for (const int lies : {0, 1, 2, 3}) {
        const bool turned_a = lies & 1, turned_b = lies & 2;
        RowBuffer a(dtype, kBatch * kHeads, rows * depth), b(dtype, kBatch * kHeads, depth * columns),
            out(dtype, kBatch * kNnz, block * block);
        a.randomise(1);
        b.randomise(2);
        run_sparse(BlockSddParams{.dtype = dtype,
                                  .batch = kBatch,
                                  .depth = depth,
                                  .layout = layout(block),
                                  .a = heads_of(a, rows, depth, turned_a),
                                  .b = heads_of(b, depth, columns, turned_b),
                                  .out = out.data()});
        const std::string where =
            isa + " depth " + std::to_string(depth) + (turned_a ? ", a turned" : "") + (turned_b ? ", b turned" : "");
        for (int64_t batch = 0; batch < kBatch; ++batch) {
          for_each_block_of([&](int64_t i, int64_t head, int64_t block_row) {
            for (int64_t place = 0; place < block * block; ++place) {
              const int64_t row = block_row * block + place / block, column = kBlocks[i] * block + place % block;
              double sum = 0, scale = 0;
              for (int64_t k = 0; k < depth; ++k) {
                const double left = a.get(batch * kHeads + head, turned_a ? k * rows + row : row * depth + k);
                const double right = b.get(batch * kHeads + head, turned_b ? column * depth + k : k * columns + column);
                sum += left * right;
                scale += std::abs(left * right);
              }
              expect_near(dtype, out.get(batch * kNnz + i, place), sum, scale, where);
            }
          });
        }
      }
    }
  });
}

TEST(BlockSparse, Dsd) {
  for_each_kind([](DType dtype, int64_t block, const std::string& isa) {
    const int64_t rows = kBlockRows * block, columns = kBlockColumns * block;
    for (const int64_t width : {1, 16, 37, 150, 256}) {
      if (block > 16 ? width != 37 && (width != 256 || block < 64) : width > 150) continue;
      for (const bool transposed : {false, true}) {
        const int64_t in = transposed ? rows : columns, out_rows = transposed ? columns : rows;
        BlockLayout by_columns{kHeads, kBlockColumns,    kBlockRows,    block,
                               kNnz,   kOffsetsT.data(), kRowsT.data(), kPlaces.data()};
        RowBuffer values(dtype, kBatch * kNnz, block * block), b(dtype, kBatch * kHeads, in * width),
            out(dtype, kBatch * kHeads, out_rows * width);
        values.randomise(1);
        b.randomise(2);
        run_sparse(BlockDsdParams{.dtype = dtype,
                                  .batch = kBatch,
                                  .width = width,
                                  .layout = transposed ? by_columns : layout(block),
                                  .transposed_blocks = transposed,
                                  .values = values.data(),
                                  .b = heads_of(b, in, width),
                                  .out = out.data()});
        std::vector<double> sums(kBatch * kHeads * out_rows * width), scales(sums.size());
        for (int64_t batch = 0; batch < kBatch; ++batch) {
          for_each_block_of([&](int64_t i, int64_t head, int64_t block_row) {
            for (int64_t place = 0; place < block * block; ++place) {
              int64_t row = block_row * block + place / block, column = kBlocks[i] * block + place % block;
              if (transposed) std::swap(row, column);
              for (int64_t k = 0; k < width; ++k) {
                const double term =
                    values.get(batch * kNnz + i, place) * b.get(batch * kHeads + head, column * width + k);
                sums[((batch * kHeads + head) * out_rows + row) * width + k] += term;
                scales[((batch * kHeads + head) * out_rows + row) * width + k] += std::abs(term);
              }
            }
          });
        }
        for (size_t i = 0; i < sums.size(); ++i) {
          expect_near(dtype, out.get(static_cast<int64_t>(i)), sums[i], scales[i],
                      isa + " width " + std::to_string(width) + (transposed ? " transposed" : ""));
        }
      }
    }
  });
}

// With a bias per head and key, hidden elements, and rows that see nothing.
TEST(BlockSparse, Softmax) {
  for_each_kind([](DType dtype, int64_t block, const std::string& where) {
    const int64_t rows = kBlockRows * block, columns = kBlockColumns * block;
    RowBuffer x(dtype, kBatch * kNnz, block * block), y(dtype, kBatch * kNnz, block * block),
        dy(dtype, kBatch * kNnz, block * block), dx(dtype, kBatch * kNnz, block * block), bias(dtype, kHeads, columns);
    x.randomise(1);
    dy.randomise(2);
    bias.randomise(3);
    bias.set(3, -INFINITY);
    run_sparse(BlockSoftmaxFwdParams{.dtype = dtype,
                                     .batch = kBatch,
                                     .layout = layout(block),
                                     .scale = 0.5,
                                     .causal = true,
                                     .values = x.data(),
                                     .bias = {bias.data(), 0, columns, 0, 1},
                                     .out = y.data()});
    run_sparse(BlockSoftmaxBwdParams{.dtype = dtype,
                                     .batch = kBatch,
                                     .layout = layout(block),
                                     .scale = 0.5,
                                     .out = y.data(),
                                     .dout = dy.data(),
                                     .dx = dx.data()});
    for (int64_t batch = 0; batch < kBatch; ++batch) {
      for (int64_t row = 0; row < kHeads * rows; ++row) {
        const int64_t head = row / rows, in_head = row % rows, block_row = row / block, r = row % block;
        double sum = 0, product = 0, scale = 0;
        const auto for_each_element = [&](const auto& fn) {
          for (int32_t i = kOffsets[block_row]; i < kOffsets[block_row + 1]; ++i) {
            for (int64_t k = 0; k < block; ++k) {
              const int64_t column = kBlocks[i] * block + k;
              const double score = 0.5 * x.get(batch * kNnz + i, r * block + k) + bias.get(head, column);
              fn(batch * kNnz + i, r * block + k, column <= in_head ? std::exp(score) : 0);
            }
          }
        };
        for_each_element([&](int64_t block, int64_t place, double power) {
          sum += power;
          product += y.get(block, place) * dy.get(block, place);
          scale += std::abs(y.get(block, place) * dy.get(block, place));
        });
        for_each_element([&](int64_t block, int64_t place, double power) {
          const double got = y.get(block, place);
          expect_near(dtype, got, sum == 0 ? 0 : power / sum, 0, where);
          const double gradient = 0.5 * got * (dy.get(block, place) - product);
          expect_near(dtype, dx.get(block, place), gradient, got * (2 + scale), where);
        });
      }
    }
  });
}

}  // namespace
}  // namespace xformers::testing
