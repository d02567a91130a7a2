// Block-sparse products and softmax without LibTorch: every instruction set and element type against plain loops in
// double, in memory that ends where the tensors end.
#include <vector>

#include "tests/kernels/blocks_support.h"
#include "xformers/kernels/base/error.h"
#include "xformers/kernels/cpu/blocksparse/blocksparse_cpu.h"

namespace xformers::testing {
namespace {

constexpr int64_t kBatch = 2, kHeads = 2, kBlockRows = 3, kBlockColumns = 2, kBlock = 16;
constexpr int64_t kRows = kBlockRows * kBlock, kColumns = kBlockColumns * kBlock;
const cpu::Threads kThreads{2, nullptr};

// Head 0: rows of 2, 0 and 1 blocks; head 1: 1, 1 and 2.
const std::vector<int32_t> kOffsets{0, 2, 2, 3, 4, 5, 7}, kBlocks{0, 1, 1, 0, 1, 0, 1};
// By columns of both heads: rows, and where their blocks are stored.
const std::vector<int32_t> kOffsetsT{0, 1, 3, 5, 7}, kRowsT{0, 0, 2, 0, 2, 1, 2}, kPlaces{0, 1, 2, 3, 5, 4, 6};
const int64_t kNnz = static_cast<int64_t>(kBlocks.size());

BlockLayout layout() {
  return {kHeads, kBlockRows, kBlockColumns, kBlock, kNnz, kOffsets.data(), kBlocks.data(), nullptr};
}

// fn(i, head, block row) for every block i.
template <class Fn>
void for_each_block_of(const Fn& fn) {
  for (int64_t row = 0; row < kHeads * kBlockRows; ++row) {
    for (int32_t i = kOffsets[row]; i < kOffsets[row + 1]; ++i) fn(i, row / kBlockRows, row % kBlockRows);
  }
}

template <class Body>
void for_each_dtype(const Body& body) {
  for_each_isa([&](const std::string& isa) {
    for (const DType dtype : kBlockDTypes) body(dtype, isa + " " + name_of(dtype));
  });
}

// [batch * heads, rows * columns] as [batch, heads, rows, columns], or the transpose of what lies there.
HeadMatrices heads_of(const RowBuffer& matrix, int64_t rows, int64_t columns, bool transposed = false) {
  return {matrix.data(), kHeads * rows * columns, rows * columns, transposed ? 1 : columns, transposed ? rows : 1};
}

TEST(BlockSparse, Sdd) {
  for_each_dtype([](DType dtype, const std::string& isa) {
    for (const int64_t depth : {0, 1, 17, 64, 300}) {
      for (const bool transposed : {false, true}) {
        RowBuffer a(dtype, kBatch * kHeads, kRows * depth), b(dtype, kBatch * kHeads, depth * kColumns),
            out(dtype, kBatch * kNnz, kBlock * kBlock);
        a.randomise(1);
        b.randomise(2);
        cpu::block_sdd({.dtype = dtype,
                        .batch = kBatch,
                        .depth = depth,
                        .layout = layout(),
                        .a = heads_of(a, kRows, depth, transposed),
                        .b = heads_of(b, depth, kColumns, transposed),
                        .out = out.data()},
                       kThreads);
        const std::string where = isa + " depth " + std::to_string(depth) + (transposed ? " transposed" : "");
        for (int64_t batch = 0; batch < kBatch; ++batch) {
          for_each_block_of([&](int64_t i, int64_t head, int64_t block_row) {
            for (int64_t place = 0; place < kBlock * kBlock; ++place) {
              const int64_t row = block_row * kBlock + place / kBlock, column = kBlocks[i] * kBlock + place % kBlock;
              double sum = 0, scale = 0;
              for (int64_t k = 0; k < depth; ++k) {
                const double left = a.get(batch * kHeads + head, transposed ? k * kRows + row : row * depth + k);
                const double right =
                    b.get(batch * kHeads + head, transposed ? column * depth + k : k * kColumns + column);
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
  for_each_dtype([](DType dtype, const std::string& isa) {
    for (const int64_t width : {1, 16, 37, 150}) {
      for (const bool transposed : {false, true}) {
        const int64_t in = transposed ? kRows : kColumns, out_rows = transposed ? kColumns : kRows;
        BlockLayout by_columns{kHeads, kBlockColumns,    kBlockRows,    kBlock,
                               kNnz,   kOffsetsT.data(), kRowsT.data(), kPlaces.data()};
        RowBuffer values(dtype, kBatch * kNnz, kBlock * kBlock), b(dtype, kBatch * kHeads, in * width),
            out(dtype, kBatch * kHeads, out_rows * width);
        values.randomise(1);
        b.randomise(2);
        cpu::block_dsd({.dtype = dtype,
                        .batch = kBatch,
                        .width = width,
                        .layout = transposed ? by_columns : layout(),
                        .transposed_blocks = transposed,
                        .values = values.data(),
                        .b = heads_of(b, in, width),
                        .out = out.data()},
                       kThreads);
        std::vector<double> sums(kBatch * kHeads * out_rows * width), scales(sums.size());
        for (int64_t batch = 0; batch < kBatch; ++batch) {
          for_each_block_of([&](int64_t i, int64_t head, int64_t block_row) {
            for (int64_t place = 0; place < kBlock * kBlock; ++place) {
              int64_t row = block_row * kBlock + place / kBlock, column = kBlocks[i] * kBlock + place % kBlock;
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
  for_each_dtype([](DType dtype, const std::string& where) {
    RowBuffer x(dtype, kBatch * kNnz, kBlock * kBlock), y(dtype, kBatch * kNnz, kBlock * kBlock),
        dy(dtype, kBatch * kNnz, kBlock * kBlock), dx(dtype, kBatch * kNnz, kBlock * kBlock),
        bias(dtype, kHeads, kColumns);
    x.randomise(1);
    dy.randomise(2);
    bias.randomise(3);
    bias.set(3, -INFINITY);
    cpu::block_softmax_forward({.dtype = dtype,
                                .batch = kBatch,
                                .layout = layout(),
                                .scale = 0.5,
                                .causal = true,
                                .values = x.data(),
                                .bias = {bias.data(), 0, kColumns, 0, 1},
                                .out = y.data()},
                               kThreads);
    cpu::block_softmax_backward({.dtype = dtype,
                                 .batch = kBatch,
                                 .layout = layout(),
                                 .scale = 0.5,
                                 .out = y.data(),
                                 .dout = dy.data(),
                                 .dx = dx.data()},
                                kThreads);
    for (int64_t batch = 0; batch < kBatch; ++batch) {
      for (int64_t row = 0; row < kHeads * kRows; ++row) {
        const int64_t head = row / kRows, in_head = row % kRows, block_row = row / kBlock, r = row % kBlock;
        double sum = 0, product = 0, scale = 0;
        const auto for_each_element = [&](const auto& fn) {
          for (int32_t i = kOffsets[block_row]; i < kOffsets[block_row + 1]; ++i) {
            for (int64_t k = 0; k < kBlock; ++k) {
              const int64_t column = kBlocks[i] * kBlock + k;
              const double score = 0.5 * x.get(batch * kNnz + i, r * kBlock + k) + bias.get(head, column);
              fn(batch * kNnz + i, r * kBlock + k, column <= in_head ? std::exp(score) : 0);
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

TEST(BlockSparse, LayoutsThatLeaveTheMatrixAreRefused) {
  RowBuffer a(DType::kFloat32, kHeads, kRows * 4), out(DType::kFloat32, kNnz, kBlock * kBlock);
  a.randomise(1);
  BlockLayout wrong = layout();
  const std::vector<int32_t> columns{0, 1, 2, 0, 1, 0, 1};
  wrong.column_indices = columns.data();
  const BlockSddParams params{.batch = 1,
                              .depth = 4,
                              .layout = wrong,
                              .a = heads_of(a, kRows, 4),
                              .b = heads_of(a, 4, kColumns),
                              .out = out.data()};
  EXPECT_THROW(cpu::block_sdd(params, kThreads), Error);
  BlockSddParams odd = params;
  odd.layout = layout();
  odd.layout.block = 24;
  EXPECT_THROW(cpu::block_sdd(odd, kThreads), Error);
}

}  // namespace
}  // namespace xformers::testing
