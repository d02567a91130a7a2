// The C++ example of docs/ops/attention-patterns.md, between two markers.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

// [example]
#include "xformers/nn/functional/attention_patterns.h"
#include "xformers/nn/functional/sparsity_config.h"

at::Tensor visible_elements(int64_t seqlen) {
  namespace fn = xformers::nn::functional;
  const fn::BSLongformerSparsityConfig config{{.num_heads = 8, .block_size = 64}, 3, {0, 4}};
  return fn::layout_to_pattern(config.make_layout(seqlen), 64);  // bool [8, seqlen, seqlen]
}
// [example]

TEST(PatternsExample, RunsAsDocumented) {
  const at::Tensor visible = visible_elements(512);
  EXPECT_EQ(visible.sizes(), (at::IntArrayRef{8, 512, 512}));
  EXPECT_TRUE(visible.select(1, 4 * 64).all().item<bool>());
}
