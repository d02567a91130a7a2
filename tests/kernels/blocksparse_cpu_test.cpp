// Layouts that leave the matrix are refused on the CPU before anything is read behind the ends of the guarded buffers.
#include "xformers/kernels/cpu/blocksparse/blocksparse_cpu.h"

#include <vector>

#include "tests/kernels/blocks_support.h"
#include "xformers/kernels/base/error.h"

namespace xformers::testing {
namespace {

const cpu::Threads kThreads{2, nullptr};

TEST(BlockSparse, LayoutsThatLeaveTheMatrixAreRefused) {
  const std::vector<int32_t> offsets{0, 1, 2}, columns{0, 2};
  RowBuffer a(DType::kFloat32, 32, 4), b(DType::kFloat32, 4, 32), out(DType::kFloat32, 2, 16 * 16);
  a.randomise(1);
  b.randomise(2);
  const auto run = [&](int64_t block, int64_t block_columns) {
    cpu::block_sdd({.batch = 1,
                    .depth = 4,
                    .layout = {1, 2, block_columns, block, 2, offsets.data(), columns.data(), nullptr},
                    .a = {a.data(), 0, 0, 4, 1},
                    .b = {b.data(), 0, 0, 32, 1},
                    .out = out.data()},
                   kThreads);
  };
  EXPECT_THROW(run(16, 2), Error);
  EXPECT_THROW(run(24, 3), Error);
}

}  // namespace
}  // namespace xformers::testing
