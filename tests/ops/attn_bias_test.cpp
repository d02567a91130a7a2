// Bias types in C++: packing, splitting, lowering, errors.
#include "xformers/ops/attention/attn_bias.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "xformers/kernels/base/error.h"

namespace xformers::ops {
namespace {

TEST(AttnBias, SeqLenInfo) {
  const SeqLenInfo info = SeqLenInfo::from_seqlens({2, 3, 2});
  EXPECT_EQ(info.seqstart_host, (std::vector<int64_t>{0, 2, 5, 7}));
  EXPECT_TRUE(at::equal(info.seqstart, at::tensor({0, 2, 5, 7}, at::kInt)));
  EXPECT_EQ(info.max_seqlen, 3);
  EXPECT_EQ(info.min_seqlen, 2);
  EXPECT_EQ(SeqLenInfo::from_seqlens({}).max_seqlen, -1);
  EXPECT_EQ(SeqLenInfo::from_seqlens({0, 4}).min_seqlen, 0);
}

TEST(AttnBias, FromTensorListAndSplit) {
  const std::vector<at::Tensor> tensors = {at::randn({2, 3, 4}), at::randn({1, 5, 4}), at::randn({3, 1, 4})};
  const auto [bias, packed] = BlockDiagonalMask::from_tensor_list(tensors);
  EXPECT_EQ(packed.sizes(), at::IntArrayRef({1, 14, 4}));
  const auto parts = bias.split(packed);
  ASSERT_EQ(parts.size(), tensors.size());
  for (size_t i = 0; i < parts.size(); ++i) EXPECT_TRUE(at::equal(parts[i], tensors[i]));

  const auto singles = BlockDiagonalMask::from_seqlens({6, 8}).split(packed);
  ASSERT_EQ(singles.size(), 2u);
  EXPECT_EQ(singles[1].sizes(), at::IntArrayRef({1, 8, 4}));
}

TEST(AttnBias, LowersToLayoutBandAndScores) {
  const LoweredBias none = AttentionBias().lowered();
  EXPECT_EQ(none.window_left, -1);
  EXPECT_EQ(none.window_right, -1);
  EXPECT_FALSE(none.scores.defined());

  const LoweredBias local = AttentionBias(LocalAttentionFromBottomRightMask(3, 4)).lowered();
  EXPECT_EQ(local.window_left, 3);
  EXPECT_EQ(local.window_right, 4);
  EXPECT_TRUE(local.bottom_right);

  const AttentionBias causal = BlockDiagonalCausalMask::from_seqlens({2, 3}, at::IntArrayRef{4, 4});
  EXPECT_EQ(causal.lowered().window_right, 0);
  EXPECT_TRUE(at::equal(causal.lowered().cu_seqlens_q, at::tensor({0, 2, 5}, at::kInt)));
  EXPECT_TRUE(at::equal(causal.lowered().cu_seqlens_k, at::tensor({0, 4, 8}, at::kInt)));
  EXPECT_STREQ(causal.lowered().name, "BlockDiagonalCausalMask");
}

TEST(AttnBias, RefusesWhatMakesNoSense) {
  EXPECT_THROW(LocalAttentionFromBottomRightMask(-1, 0), Error);
  EXPECT_THROW(SeqLenInfo::from_seqlens({1, -2}), Error);
  EXPECT_THROW(BlockDiagonalMask::from_seqlens({1, 2}, at::IntArrayRef{3}), Error);
  EXPECT_THROW(BlockDiagonalMask::from_tensor_list({}), Error);
  EXPECT_THROW(BlockDiagonalMask::from_seqlens({1, 2}).split(at::zeros({1, 4, 2})), Error);
  EXPECT_THROW(BlockDiagonalMask::from_seqlens({1, 2}, at::IntArrayRef{2, 1}).split(at::zeros({1, 3, 2})), Error);
}

}  // namespace
}  // namespace xformers::ops
