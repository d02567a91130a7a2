// The C++ example of docs/ops/attention-mechanisms.md, between two markers.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

// [example]
#include "xformers/nn/attention/multi_head_dispatch.h"

xformers::nn::MultiHeadDispatch nystrom_heads() {
  return xformers::nn::build_multi_head_attention({.dim_model = 64, .num_heads = 4},
                                                  {{"name", "nystrom"}, {"num_landmarks", 16}, {"dropout", 0.1}});
}
// [example]

TEST(MechanismsExample, RunsAsDocumented) {
  const at::Tensor x = at::randn({2, 100, 64});
  EXPECT_EQ(nystrom_heads()->forward(x).sizes(), x.sizes());
}
