// What the CPU's sparse rows do beyond what every device does: transposes, threads, patterns that leave the matrix.
#include "xformers/kernels/cpu/csr/csr_cpu.h"

#include <algorithm>
#include <vector>

#include "tests/kernels/blocks_support.h"
#include "tests/kernels/csr_support.h"
#include "xformers/kernels/base/error.h"

namespace xformers::testing {
namespace {

const cpu::Threads kThreads{2, nullptr};

TEST(Csr, Transpose) {
  const TestPattern pattern = mixed_pattern();
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
  const TestPattern pattern = mixed_pattern();
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
