// The C++ examples of docs/ops/attention-mechanisms.md and linear-attention.md, each between two markers.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

// [example]
#include "xformers/nn/attention/multi_head_dispatch.h"

xformers::nn::MultiHeadDispatch nystrom_heads() {
  return xformers::nn::build_multi_head_attention({.dim_model = 64, .num_heads = 4},
                                                  {{"name", "nystrom"}, {"num_landmarks", 16}, {"dropout", 0.1}});
}
// [example]

// [example]
#include "xformers/ops/linear_attention/linear_attention.h"

at::Tensor retention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& log_decay) {
  return xformers::ops::linear_attention(q, k, v, {.log_decay = log_decay, .causal = true, .normalize = false}).out;
}
// [example]

TEST(MechanismsExample, RetentionForgets) {
  const at::Tensor ones = at::ones({1, 3, 1, 1}), halves = at::full({1, 3, 1}, std::log(0.5));
  EXPECT_TRUE(at::allclose(retention(ones, ones, ones, halves).flatten(), at::tensor({1.0F, 1.5F, 1.75F})));
}

TEST(MechanismsExample, RunsAsDocumented) {
  const at::Tensor x = at::randn({2, 100, 64});
  EXPECT_EQ(nystrom_heads()->forward(x).sizes(), x.sizes());
}
