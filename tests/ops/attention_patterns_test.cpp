// Patterns and layouts through their C++ functions; rules and options in depth: tests/python.
#include "xformers/nn/functional/attention_patterns.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

#include "xformers/kernels/base/error.h"
#include "xformers/nn/functional/sparsity_config.h"

namespace xformers::nn::functional {
namespace {

std::vector<std::string> rows_of(const at::Tensor& layout) {
  std::vector<std::string> rows;
  for (int64_t i = 0; i < layout.size(0); ++i) {
    std::string& row = rows.emplace_back();
    for (int64_t j = 0; j < layout.size(1); ++j) row += std::to_string(layout[i][j].item<int64_t>());
  }
  return rows;
}
using Rows = std::vector<std::string>;

TEST(AttentionPatterns, Masks) {
  EXPECT_EQ(rows_of(local_1d_pattern(4, 3)), (Rows{"1100", "1110", "0111", "0011"}));
  EXPECT_EQ(rows_of(causal_1d_pattern(3)), (Rows{"100", "110", "111"}));
  EXPECT_EQ(rows_of(axial_nd_pattern({2, 2})), (Rows{"1110", "1101", "1011", "0111"}));
  EXPECT_EQ(rows_of(swin_attention_pattern(2, 2, 2, 1)), (Rows{"1000", "0100", "0010", "0001"}));
  EXPECT_EQ(rows_of(pattern_to_layout(local_1d_pattern(8, 3), 4)), (Rows{"11", "11"}));
  EXPECT_THROW(local_1d_pattern(4, 2), Error);
}

TEST(SparsityConfig, Layouts) {
  const at::Tensor fixed = FixedSparsityConfig{{.num_heads = 2}}.make_layout(96);
  EXPECT_EQ(rows_of(fixed[0]), (Rows{"111101", "111101", "111101", "111101", "000111", "000111"}));
  EXPECT_TRUE(at::equal(fixed[0], fixed[1]));
  VariableSparsityConfig variable;
  variable.causal = true;
  EXPECT_EQ(rows_of(variable.make_layout(96)[0]), (Rows{"100000", "110000", "111000", "111100", "100010", "100011"}));
  BSLongformerSparsityConfig longformer;
  longformer.causal = true;
  EXPECT_EQ(rows_of(longformer.make_layout(64)[0]), (Rows{"1000", "1100", "1110", "1011"}));
  EXPECT_EQ(DenseSparsityConfig{{.num_heads = 3}}.make_layout(64).sum().item<int64_t>(), 48);
  EXPECT_THROW((FixedSparsityConfig{{}, 4, 3}.make_layout(64)), Error);
  EXPECT_THROW(DenseSparsityConfig().make_layout(65), Error);
}

TEST(SparsityConfig, RandomBlocksAreThoseOfASeed) {
  const auto layout = [](uint64_t seed) {
    BigBirdSparsityConfig config;
    config.num_random_blocks = 3;
    config.generator = at::make_generator<at::CPUGeneratorImpl>(seed);
    return config.make_layout(512);
  };
  EXPECT_TRUE(at::equal(layout(3), layout(3)));
  EXPECT_FALSE(at::equal(layout(3), layout(4)));
  EXPECT_TRUE(layout(3).sum(-1).ge(5).all().item<bool>());
}

}  // namespace
}  // namespace xformers::nn::functional
