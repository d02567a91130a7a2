// Sparse rows without LibTorch: every instruction set (or the GPU) and element type against plain loops in double, over
// rows of all lengths, in memory that ends where the tensors end.
#include <algorithm>
#include <vector>

#include "tests/kernels/blocks_support.h"
#include "tests/kernels/csr_support.h"
#include "tests/kernels/sparse_backend.h"

namespace xformers::testing {
namespace {

constexpr int64_t kBatch = 2;

template <class Body>
void for_each_kind(const Body& body) {
  for_each_sparse_backend([&](const std::string& backend) {
    for (const DType dtype : kBlockDTypes) body(dtype, backend + " " + name_of(dtype));
  });
}

TEST(Csr, Sddmm) {
  const TestPattern pattern = mixed_pattern();
  for_each_kind([&](DType dtype, const std::string& where) {
    for (const int64_t depth : {0, 1, 15, 16, 33, 70}) {
      const int64_t rows = pattern.rows();
      RowBuffer a(dtype, kBatch * rows, depth), b(dtype, kBatch * pattern.num_columns, depth),
          out(dtype, kBatch, pattern.nnz());
      a.randomise(1);
      b.randomise(2);
      run_sparse(CsrSddmmParams{.dtype = dtype,
                                .batch = kBatch,
                                .depth = depth,
                                .pattern = pattern.params(),
                                .a = {a.data(), rows * depth, depth},
                                .b = {b.data(), pattern.num_columns * depth, depth},
                                .out = out.data()});
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
  const TestPattern pattern = mixed_pattern();
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
        run_sparse(CsrSpmmParams{.dtype = dtype,
                                 .batch = kBatch,
                                 .width = width,
                                 .pattern = pattern.params(),
                                 .values = values.data(),
                                 .values_stride = shared ? 0 : pattern.nnz(),
                                 .places = shared ? reversed.data() : nullptr,
                                 .dense = {dense.data(), columns * width, width},
                                 .out = {out.data(), rows * width, width}});
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
  const TestPattern pattern = mixed_pattern();
  for_each_kind([&](DType dtype, const std::string& where) {
    RowBuffer x(dtype, kBatch, pattern.nnz()), y(dtype, kBatch, pattern.nnz()), dy(dtype, kBatch, pattern.nnz()),
        dx(dtype, kBatch, pattern.nnz());
    x.randomise(1);
    dy.randomise(2);
    run_sparse(CsrSoftmaxFwdParams{
        .dtype = dtype, .batch = kBatch, .pattern = pattern.params(), .values = x.data(), .out = y.data()});
    run_sparse(CsrSoftmaxBwdParams{.dtype = dtype,
                                   .batch = kBatch,
                                   .pattern = pattern.params(),
                                   .out = y.data(),
                                   .dout = dy.data(),
                                   .dx = dx.data()});
    for (int64_t i = 0; i < kBatch * pattern.rows(); ++i) {
      const int64_t batch = i / pattern.rows(), row = i % pattern.rows();
      long double sum = 0, product = 0, scale = 0;  // of thousands of terms: double has to be exact
      const int32_t begin = pattern.offsets[row], end = pattern.offsets[row + 1];
      for (int32_t j = begin; j < end; ++j) sum += std::exp(x.get(batch, j));
      for (int32_t j = begin; j < end; ++j) {
        product += y.get(batch, j) * dy.get(batch, j);
        scale += std::abs(y.get(batch, j) * dy.get(batch, j));
      }
      for (int32_t j = begin; j < end; ++j) {
        expect_near(dtype, y.get(batch, j), static_cast<double>(std::exp(x.get(batch, j)) / sum), 0, where);
        const double y_j = y.get(batch, j);
        expect_near(dtype, dx.get(batch, j), static_cast<double>(y_j * (dy.get(batch, j) - product)),
                    static_cast<double>(std::abs(y_j) * (2 + scale)), where);
      }
    }
  });
}

TEST(Csr, SoftmaxIsExactHoweverFarRowsLieApart) {
  const TestPattern pattern({2, 2}, 4);
  for_each_kind([&](DType dtype, const std::string& where) {
    RowBuffer x(dtype, 1, 4), y(dtype, 1, 4);
    for (int i = 0; i < 4; ++i) x.set(i, i < 2 ? -20000 : 20000);
    run_sparse(CsrSoftmaxFwdParams{
        .dtype = dtype, .batch = 1, .pattern = pattern.params(), .values = x.data(), .out = y.data()});
    for (int i = 0; i < 4; ++i) EXPECT_EQ(y.get(i), 0.5) << where;
  });
}

}  // namespace
}  // namespace xformers::testing
