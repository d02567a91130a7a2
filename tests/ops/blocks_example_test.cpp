// The C++ examples of the pages of docs/ops about the operators around attention, each between two markers.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

// [example]
#include "xformers/ops/indexing/indexing.h"

void add_rows(const at::Tensor& stream, const at::Tensor& rows, const at::Tensor& update) {
  xformers::ops::scaled_index_add(stream, rows, update, /*scaling=*/std::nullopt, /*alpha=*/0.5);
}
// [example]

// [example]
#include "xformers/ops/norm/norm.h"

at::Tensor normalise(at::Tensor stream, const at::Tensor& update, const at::Tensor& weight) {
  namespace xops = xformers::ops;
  const at::Tensor first = xops::rms_norm_add(stream, update, weight);  // stream += update
  return xops::layer_norm(first);
}
// [example]

// [example]
#include "xformers/ops/rope/rope.h"

at::Tensor positions_in(const at::Tensor& query) {  // [batch, heads, seqlen, head_dim]
  return xformers::ops::rotary(query, /*theta=*/500000.0, /*adjacents=*/true);
}
// [example]

// [example]
#include "xformers/ops/swiglu/swiglu.h"

at::Tensor feed_forward(const at::Tensor& x, const at::Tensor& w1w2, const at::Tensor& w3) {  // w1w2 [2, hidden, in]
  return xformers::ops::swiglu_packed(x, w1w2, /*b1b2=*/std::nullopt, w3);
}
// [example]

// [example]
#include "xformers/ops/tiled_matmul/tiled_matmul.h"

at::Tensor product(const at::Tensor& left, const at::Tensor& right, const at::Tensor& upper, const at::Tensor& lower) {
  return xformers::ops::tiled_matmul({{left, right}}, {{upper}, {lower}})[0][0];  // [left right] [upper; lower]
}
// [example]

TEST(BlockExamples, RunAsDocumented) {
  const at::Tensor stream = at::ones({4, 2, 3});
  add_rows(stream, at::tensor({1, 3}, at::kLong), at::ones({2, 2, 3}));
  EXPECT_TRUE(at::equal(stream.select(0, 1), at::full({2, 3}, 1.5)) &&
              at::equal(stream.select(0, 0), at::ones({2, 3})));

  const at::Tensor x = at::ones({2, 8});
  EXPECT_TRUE(at::allclose(normalise(x, at::randn({2, 8}), at::ones({8})).mean(-1), at::zeros({2}), 0, 1e-5));
  EXPECT_EQ(positions_in(at::randn({2, 3, 5, 8})).sizes(), at::IntArrayRef({2, 3, 5, 8}));
  EXPECT_EQ(feed_forward(at::randn({4, 8}), at::randn({2, 6, 8}), at::randn({8, 6})).sizes(), at::IntArrayRef({4, 8}));
  const at::Tensor a = at::randn({4, 6}), b = at::randn({6, 5});
  EXPECT_TRUE(at::allclose(product(a.narrow(1, 0, 2), a.narrow(1, 2, 4), b.narrow(0, 0, 2), b.narrow(0, 2, 4)), a.mm(b),
                           1e-4, 1e-5));
}
