// Sparse rows without LibTorch: every instruction set and element type against plain loops in double, over rows of all
// lengths, in memory that ends where the tensors end.
#include <algorithm>
#include <vector>

#include "tests/kernels/blocks_support.h"
#include "xformers/kernels/base/error.h"
#include "xformers/kernels/cpu/csr/csr_cpu.h"

namespace xformers::testing {
namespace {

constexpr int64_t kBatch = 2;
const cpu::Threads kThreads{2, nullptr};

// Rows of these lengths, columns anywhere, also twice in a row.
struct Pattern {
  std::vector<int32_t> offsets{0}, columns;
  int64_t num_columns;

  Pattern(std::initializer_list<int> lengths, int64_t num_columns) : num_columns(num_columns) {
    uint32_t seed = 7;
    for (const int length : lengths) {
      for (int i = 0; i < length; ++i) {
        seed = seed * 1664525u + 1013904223u;
        columns.push_back(static_cast<int32_t>((seed >> 8) % static_cast<uint32_t>(num_columns)));
      }
      offsets.push_back(static_cast<int32_t>(columns.size()));
    }
  }
  int64_t rows() const { return static_cast<int64_t>(offsets.size()) - 1; }
  int64_t nnz() const { return static_cast<int64_t>(columns.size()); }
  CsrPattern params() const { return {rows(), num_columns, nnz(), offsets.data(), columns.data()}; }
};

Pattern mixed() { return Pattern({0, 3, 17, 1, 0, 0, 300, 64, 5, 0}, 41); }

template <class Body>
void for_each_kind(const Body& body) {
  for_each_isa([&](const std::string& isa) {
    for (const DType dtype : kBlockDTypes) body(dtype, isa + " " + name_of(dtype));
  });
}

TEST(Csr, Sddmm) {
  const Pattern pattern = mixed();
  for_each_kind([&](DType dtype, const std::string& where) {
    for (const int64_t depth : {0, 1, 15, 16, 33, 70}) {
      const int64_t rows = pattern.rows();
      RowBuffer a(dtype, kBatch * rows, depth), b(dtype, kBatch * pattern.num_columns, depth),
          out(dtype, kBatch, pattern.nnz());
      a.randomise(1);
      b.randomise(2);
      cpu::csr_sddmm({.dtype = dtype,
                      .batch = kBatch,
                      .depth = depth,
                      .pattern = pattern.params(),
                      .a = {a.data(), rows * depth, depth},
                      .b = {b.data(), pattern.num_columns * depth, depth},
                      .out = out.data()},
                     kThreads);
      for (int64_t batch = 0; batch < kBatch; ++batch) {
        for (int64_t row = 0; row < rows; ++row) {
          for (int32_t i = pattern.offsets[row]; i < pattern.offsets[row + 1]; ++i) {
            double sum = 0, scale = 0;
            for (int64_t k = 0; k < depth; ++k) {
              const double term =
                  a.get(batch * rows + row, k) * b.get(batch * pattern.num_columns + pattern.columns[i], k);
              sum += term;
              scale += std::abs(term);
            }
            expect_near(dtype, out.get(batch, i), sum, scale, where + " depth " + std::to_string(depth));
          }
        }
      }
    }
  });
}

// Values of the batch or one for all, in their order or another.
TEST(Csr, Spmm) {
  const Pattern pattern = mixed();
  std::vector<int32_t> reversed(pattern.nnz());
  for (int64_t i = 0; i < pattern.nnz(); ++i) reversed[i] = static_cast<int32_t>(pattern.nnz() - 1 - i);
  for_each_kind([&](DType dtype, const std::string& where) {
    for (const int64_t width : {1, 7, 16, 37, 64, 100}) {
      for (const bool shared : {false, true}) {
        const int64_t rows = pattern.rows(), columns = pattern.num_columns;
        RowBuffer values(dtype, shared ? 1 : kBatch, pattern.nnz()), dense(dtype, kBatch * columns, width),
            out(dtype, kBatch * rows, width);
        values.randomise(1);
        dense.randomise(2);
        cpu::csr_spmm({.dtype = dtype,
                       .batch = kBatch,
                       .width = width,
                       .pattern = pattern.params(),
                       .values = values.data(),
                       .values_stride = shared ? 0 : pattern.nnz(),
                       .places = shared ? reversed.data() : nullptr,
                       .dense = {dense.data(), columns * width, width},
                       .out = {out.data(), rows * width, width}},
                      kThreads);
        for (int64_t i = 0; i < kBatch * rows * width; ++i) {
          const int64_t batch = i / (rows * width), row = i / width % rows;
          double sum = 0, scale = 0;
          for (int32_t j = pattern.offsets[row]; j < pattern.offsets[row + 1]; ++j) {
            const double factor = values.get(shared ? 0 : batch, shared ? reversed[j] : j);
            const double term = factor * dense.get(batch * columns + pattern.columns[j], i % width);
            sum += term;
            scale += std::abs(term);
          }
          expect_near(dtype, out.get(i), sum, scale, where + " width " + std::to_string(width));
        }
      }
    }
  });
}

TEST(Csr, Softmax) {
  const Pattern pattern = mixed();
  for_each_kind([&](DType dtype, const std::string& where) {
    RowBuffer x(dtype, kBatch, pattern.nnz()), y(dtype, kBatch, pattern.nnz()), dy(dtype, kBatch, pattern.nnz()),
        dx(dtype, kBatch, pattern.nnz());
    x.randomise(1);
    dy.randomise(2);
    cpu::csr_softmax_forward(
        {.dtype = dtype, .batch = kBatch, .pattern = pattern.params(), .values = x.data(), .out = y.data()}, kThreads);
    cpu::csr_softmax_backward({.dtype = dtype,
                               .batch = kBatch,
                               .pattern = pattern.params(),
                               .out = y.data(),
                               .dout = dy.data(),
                               .dx = dx.data()},
                              kThreads);
    for (int64_t i = 0; i < kBatch * pattern.rows(); ++i) {
      const int64_t batch = i / pattern.rows(), row = i % pattern.rows();
      double sum = 0, product = 0, scale = 0;
      const int32_t begin = pattern.offsets[row], end = pattern.offsets[row + 1];
      for (int32_t j = begin; j < end; ++j) sum += std::exp(x.get(batch, j));
      for (int32_t j = begin; j < end; ++j) {
        product += y.get(batch, j) * dy.get(batch, j);
        scale += std::abs(y.get(batch, j) * dy.get(batch, j));
      }
      for (int32_t j = begin; j < end; ++j) {
        expect_near(dtype, y.get(batch, j), std::exp(x.get(batch, j)) / sum, 0, where);
        const double y_j = y.get(batch, j);
        expect_near(dtype, dx.get(batch, j), y_j * (dy.get(batch, j) - product), std::abs(y_j) * (2 + scale), where);
      }
    }
  });
}

TEST(Csr, SoftmaxIsExactHoweverFarRowsLieApart) {
  const Pattern pattern({2, 2}, 4);
  for_each_kind([&](DType dtype, const std::string& where) {
    RowBuffer x(dtype, 1, 4), y(dtype, 1, 4);
    for (int i = 0; i < 4; ++i) x.set(i, i < 2 ? -20000 : 20000);
    cpu::csr_softmax_forward(
        {.dtype = dtype, .batch = 1, .pattern = pattern.params(), .values = x.data(), .out = y.data()}, kThreads);
    for (int i = 0; i < 4; ++i) EXPECT_EQ(y.get(i), 0.5) << where;
  });
}

TEST(Csr, Transpose) {
  const Pattern pattern = mixed();
  std::vector<int32_t> offsets(pattern.num_columns + 1, -1), rows(pattern.nnz(), -1), places(pattern.nnz(), -1);
  cpu::csr_transpose({pattern.params(), offsets.data(), rows.data(), places.data()});
  EXPECT_EQ(offsets.front(), 0);
  EXPECT_EQ(offsets.back(), pattern.nnz());
  for (int64_t column = 0; column < pattern.num_columns; ++column) {
    EXPECT_TRUE(std::is_sorted(places.begin() + offsets[column], places.begin() + offsets[column + 1]));
    for (int32_t i = offsets[column]; i < offsets[column + 1]; ++i) {
      EXPECT_EQ(pattern.columns[places[i]], column);
      EXPECT_LE(pattern.offsets[rows[i]], places[i]);
      EXPECT_GT(pattern.offsets[rows[i] + 1], places[i]);
    }
  }
}

TEST(Csr, OneThreadGivesTheSameBits) {
  const Pattern pattern = mixed();
  RowBuffer values(DType::kFloat32, 1, pattern.nnz()), dense(DType::kFloat32, pattern.num_columns, 64);
  values.randomise(1);
  dense.randomise(2);
  RowBuffer one(DType::kFloat32, pattern.rows(), 64), three(DType::kFloat32, pattern.rows(), 64);
  const auto run = [&](const RowBuffer& out, int threads) {
    cpu::csr_spmm({.batch = 1,
                   .width = 64,
                   .pattern = pattern.params(),
                   .values = values.data(),
                   .dense = {dense.data(), 0, 64},
                   .out = {out.data(), 0, 64}},
                  {threads, nullptr});
  };
  run(one, 1);
  run(three, 3);
  for (int64_t i = 0; i < one.count(); ++i) EXPECT_EQ(one.get(i), three.get(i));
}

// Refused before anything is read behind the ends of the guarded buffers.
TEST(Csr, PatternsThatLeaveTheMatrixAreRefused) {
  RowBuffer a(DType::kFloat32, 2, 4), out(DType::kFloat32, 1, 3);
  a.randomise(1);
  const auto message = [&](std::vector<int32_t> offsets, std::vector<int32_t> columns) -> std::string {
    const CsrPattern pattern{static_cast<int64_t>(offsets.size()) - 1, 2, static_cast<int64_t>(columns.size()),
                             offsets.data(), columns.data()};
    try {
      cpu::csr_sddmm(
          {.batch = 1, .depth = 4, .pattern = pattern, .a = {a.data(), 0, 4}, .b = {a.data(), 0, 4}, .out = out.data()},
          kThreads);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(message({0, 2, 3}, {0, 1, 1}), "");
  EXPECT_NE(message({1, 2, 3}, {0, 1, 1}).find("row_offsets[0] is 1, expected 0"), std::string::npos);
  EXPECT_NE(message({0, 3, 2}, {0, 1, 1}).find("row_offsets[2] is 2, expected at least 3"), std::string::npos);
  EXPECT_NE(message({0, 2, 4}, {0, 1, 1}).find("row_offsets[2] is 4, expected 3"), std::string::npos);
  EXPECT_NE(message({0, 2, 3}, {0, 2, 1}).find("column_indices[1] is 2, expected 0 <= index < 2"), std::string::npos);
  EXPECT_NE(message({0, 2, 3}, {0, 1, -1}).find("column_indices[2] is -1"), std::string::npos);
}

}  // namespace
}  // namespace xformers::testing
