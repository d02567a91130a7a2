// Forms of an LSE in C++.
#include "xformers/ops/attention/lse_formats.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "xformers/kernels/base/error.h"

namespace xformers::ops {
namespace {

TEST(LseFormats, ThereAndBack) {
  const at::Tensor lse = at::randn({1, 3, 45}), query = at::zeros({1, 45, 3, 8});
  const std::vector<int64_t> seqlens{5, 0, 40};
  const at::Tensor padded = lse_to_format(lse, "cutlass", seqlens);
  EXPECT_EQ(padded.sizes(), at::IntArrayRef({3, 3, 64}));
  EXPECT_TRUE(at::equal(padded[2].slice(-1, 0, 40), lse[0].slice(-1, 5)));
  EXPECT_TRUE(padded[1].isposinf().all().item<bool>());
  EXPECT_EQ(lse_format(padded, query, seqlens), "padded");
  EXPECT_EQ(lse_format(lse, query, seqlens), "packed");
  EXPECT_TRUE(at::equal(lse_from_format(padded, query, seqlens), lse));
  EXPECT_EQ(lse_to_format(lse, "padded", seqlens).sizes(), at::IntArrayRef({3, 3, 40}));
}

TEST(LseFormats, Batches) {
  const at::Tensor lse = at::randn({2, 3, 5}), query = at::zeros({2, 5, 3, 8});
  const at::Tensor padded = lse_to_format(lse, "cutlass", {}, at::kDouble);
  EXPECT_EQ(padded.sizes(), at::IntArrayRef({2, 3, 32}));
  EXPECT_EQ(padded.scalar_type(), at::kDouble);
  EXPECT_TRUE(at::equal(lse_from_format(padded, query), lse));
  EXPECT_THROW(lse_from_format(lse, at::zeros({2, 6, 3, 8})), Error);
}

}  // namespace
}  // namespace xformers::ops
