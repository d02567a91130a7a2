// Softmax without LibTorch: every instruction set and element type against plain loops in double, with widths around
// the vector sizes, in memory that ends where the rows end.
#include <algorithm>
#include <array>

#include "tests/kernels/blocks_support.h"
#include "xformers/kernels/cpu/softmax/softmax_cpu.h"

namespace xformers::testing {
namespace {

constexpr int64_t kOuter = 2, kRows = 5;
const cpu::Threads kThreads{2, nullptr};

struct Case {
  DType dtype;
  int64_t width;
  bool log, causal;
  std::string where;
};

template <class Body>
void for_each_case(const Body& body) {
  for_each_isa([&](const std::string& isa) {
    for (DType dtype : kBlockDTypes) {
      for (int64_t width : {1, 2, 15, 16, 33, 64, 250}) {
        for (int kind = 0; kind < 4; ++kind) {
          const Case c{dtype, width, kind % 2 == 1, kind >= 2, ""};
          body(Case{dtype, width, c.log, c.causal,
                    isa + " " + name_of(dtype) + " width " + std::to_string(width) + (c.log ? " log" : "") +
                        (c.causal ? " causal" : "")});
        }
      }
    }
  });
}

int64_t visible(const Case& c, int64_t row) { return c.causal ? std::min(row % kRows + 1, c.width) : c.width; }

TEST(Softmax, Forward) {
  for_each_case([](const Case& c) {
    RowBuffer x(c.dtype, kOuter * kRows, c.width), mask(c.dtype, kRows, c.width), out(c.dtype, kOuter * kRows, c.width);
    x.randomise(1);
    mask.randomise(2);
    cpu::softmax_forward({.shape = {c.dtype, c.log, c.causal, kOuter, 1, kRows, c.width},
                          .x = x.data(),
                          .mask = {.data = mask.data(), .row_stride = c.width},
                          .out = out.data()},
                         kThreads);
    for (int64_t row = 0; row < kOuter * kRows; ++row) {
      const auto score = [&](int64_t i) { return x.get(row, i) + mask.get(row % kRows, i); };
      double sum = 0;
      for (int64_t i = 0; i < visible(c, row); ++i) sum += std::exp(score(i));
      for (int64_t i = 0; i < c.width; ++i) {
        if (i >= visible(c, row)) {
          EXPECT_EQ(out.get(row, i), c.log ? -INFINITY : 0) << c.where;
        } else if (c.log) {
          expect_near(c.dtype, out.get(row, i), score(i) - std::log(sum), 8, c.where);
        } else {
          expect_near(c.dtype, out.get(row, i), std::exp(score(i)) / sum, 0, c.where);
        }
      }
    }
  });
}

TEST(Softmax, Backward) {
  for_each_case([](const Case& c) {
    RowBuffer y(c.dtype, kOuter * kRows, c.width), dy(c.dtype, kOuter * kRows, c.width),
        dx(c.dtype, kOuter * kRows, c.width);
    y.randomise(1);
    for (int64_t i = 0; i < y.count(); ++i) y.set(i, c.log ? -4 - y.get(i) : 0.01 * std::abs(y.get(i)));
    dy.randomise(2);
    cpu::softmax_backward({.shape = {c.dtype, c.log, c.causal, 1, kOuter, kRows, c.width},
                           .out = y.data(),
                           .dout = dy.data(),
                           .dx = dx.data()},
                          kThreads);
    for (int64_t row = 0; row < kOuter * kRows; ++row) {
      double sum = 0;
      for (int64_t i = 0; i < visible(c, row); ++i) sum += dy.get(row, i) * (c.log ? 1 : y.get(row, i));
      for (int64_t i = 0; i < c.width; ++i) {
        const double expected =
            c.log ? dy.get(row, i) - std::exp(y.get(row, i)) * sum : y.get(row, i) * (dy.get(row, i) - sum);
        if (i >= visible(c, row)) {
          EXPECT_EQ(dx.get(row, i), 0) << c.where;
        } else {
          expect_near(c.dtype, dx.get(row, i), expected, 16, c.where);
        }
      }
    }
  });
}

// A mask that only the second of two outer dimensions shares, and a row that sees nothing.
TEST(Softmax, MaskStrides) {
  for_each_isa([](const std::string& isa) {
    constexpr int64_t kBatch = 3, kHeads = 2, kWidth = 20;
    RowBuffer x(DType::kFloat32, kBatch * kHeads * kRows, kWidth),
        out(DType::kFloat32, kBatch * kHeads * kRows, kWidth);
    RowBuffer mask(DType::kFloat32, kBatch, kWidth);
    x.randomise(1);
    for (int64_t i = 0; i < mask.count(); ++i) mask.set(i, i % kWidth <= i / kWidth ? 0 : -INFINITY);
    for (int64_t i = 0; i < kWidth; ++i) mask.set(2 * kWidth + i, -INFINITY);
    cpu::softmax_forward({.shape = {DType::kFloat32, false, false, kBatch, kHeads, kRows, kWidth},
                          .x = x.data(),
                          .mask = {.data = mask.data(), .outer0_stride = kWidth},
                          .out = out.data()},
                         kThreads);
    for (int64_t row = 0; row < kBatch * kHeads * kRows; ++row) {
      const int64_t batch = row / (kHeads * kRows);
      double sum = 0;
      for (int64_t i = 0; i < kWidth; ++i) {
        if (batch == 2) {
          EXPECT_TRUE(std::isnan(out.get(row, i))) << isa;
        } else {
          EXPECT_EQ(out.get(row, i) > 0, i <= batch) << isa;
          sum += out.get(row, i);
        }
      }
      EXPECT_NEAR(sum, batch < 2 ? 1 : 0, 1e-6) << isa;
    }
  });
}

TEST(Softmax, NothingToDo) {
  cpu::softmax_forward({.shape = {.rows = 0, .width = 5}, .x = nullptr, .mask = {}, .out = nullptr}, kThreads);
  cpu::softmax_backward({.shape = {.rows = 5, .width = 0}, .out = nullptr, .dout = nullptr, .dx = nullptr}, kThreads);
}

}  // namespace
}  // namespace xformers::testing
