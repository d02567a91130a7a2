// The C++ example of docs/ops/attention.md, which shows the lines between the two markers.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

// [example]
#include "xformers/ops/attention/attention.h"

at::Tensor attend() {
  namespace xops = xformers::ops;
  at::Tensor query = at::randn({2, 1024, 8, 64}).requires_grad_();  // [batch, seqlen, heads, head_dim]
  at::Tensor key = at::randn({2, 1024, 8, 64});
  at::Tensor value = at::randn({2, 1024, 8, 64});

  at::Tensor out = xops::memory_efficient_attention(query, key, value, xops::LowerTriangularMask{});
  out.sum().backward();
  return query.grad();
}
// [example]

TEST(Example, RunsAsDocumented) {
  const at::Tensor grad = attend();
  EXPECT_EQ(grad.sizes(), at::IntArrayRef({2, 1024, 8, 64}));
  EXPECT_TRUE(at::isfinite(grad).all().item<bool>());
}
