// BlockSparseMask in C++, and the example of docs/ops/block-sparse.md, which shows the lines between the two markers.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "tests/ops/bias_check.h"

// [example]
#include "xformers/ops/attention/attention.h"

at::Tensor attend_blocks(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                         const at::Tensor& layout) {
  const auto mask = xformers::ops::BlockSparseMask(layout, /*block_size=*/64).make_causal();
  return xformers::ops::memory_efficient_attention(query, key, value, mask);
}
// [example]

namespace xformers::ops {
namespace {

const auto in_layout = [](int64_t i, int64_t j) { return (3 * i + j) % 4 != 2; };

at::Tensor layout_by_rule(int64_t rows, int64_t columns) { return mask_by_rule(rows, columns, in_layout).isfinite(); }

TEST(Example, BlocksRunAsDocumented) {
  at::manual_seed(0);
  const at::Tensor x = at::randn({1, 130, 2, 8});
  const at::Tensor mask =
      mask_by_rule(130, 130, [](int64_t i, int64_t j) { return j <= i && in_layout(i / 64, j / 64); });
  const at::Tensor expected = memory_efficient_attention(x, x, x, mask.expand({1, 2, 130, 130}));
  EXPECT_TRUE(at::allclose(attend_blocks(x, x, x, layout_by_rule(3, 3)), expected, 1e-5, 1e-6));
}

TEST(BlockSparseMask, EveryConstructorMeansTheSame) {
  const at::Tensor layout = layout_by_rule(3, 5);
  const BlockSparseMask mask(layout, {16, 32});
  const at::Tensor elements = mask_by_rule(40, 150, [](int64_t i, int64_t j) { return in_layout(i / 16, j / 32); });
  std::vector<int64_t> indices, offsets{0}, columns;
  for (int64_t i = 0; i < 3; ++i) {
    for (int64_t j = 4; j >= 0; --j) indices.push_back(in_layout(i, j) ? j : -1);
    for (int64_t j = 0; j < 5; ++j) {
      if (in_layout(i, j)) columns.push_back(j);
    }
    offsets.push_back(static_cast<int64_t>(columns.size()));
  }
  const BlockSparseMask same[] = {
      mask, BlockSparseMask::from_indices(at::tensor(indices, at::kInt).view({1, 1, 3, 5}), {}, 5, {16, 32}),
      BlockSparseMask::from_bsr(at::tensor(offsets, at::kInt), at::tensor(columns, at::kInt), 5, {16, 32}),
      BlockSparseMask::from_mask(elements.isfinite(), {16, 32})};
  for (const BlockSparseMask& one : same) {
    EXPECT_TRUE(at::equal(one.layout()[0][0], layout));
    EXPECT_TRUE(at::equal(one.materialize({40, 150}), elements));
    EXPECT_FALSE(one.lists.bits.defined());
    expect_attention_follows(one, elements);
  }
  EXPECT_FLOAT_EQ(mask.density().item<float>(), layout.to(at::kFloat).mean().item<float>());
  const BlockSparseMask window = mask.make_causal_from_bottomright().make_local_attention(50);
  EXPECT_TRUE(window.lists.key_blocks.is_same(mask.lists.key_blocks));
  expect_attention_follows(window, mask_by_rule(40, 150, [](int64_t i, int64_t j) {
                             return in_layout(i / 16, j / 32) && j <= i + 110 && j > i + 60;
                           }));
}

TEST(BlockSparseMask, ElementsAndAddedScores) {
  const auto rule = [](int64_t i, int64_t j) { return (i * 7 + j * j) % 5 < 2 && i / 20 != 1; };
  const at::Tensor elements = mask_by_rule(70, 90, rule);
  const BlockSparseMask mask = BlockSparseMask::from_mask(elements.isfinite(), 48);
  expect_attention_follows(mask, elements);
  const at::Tensor scores = at::randn({1, 2, 70, 90});
  EXPECT_TRUE(mask.add_bias(scores).lists.bits.is_same(mask.lists.bits));
  EXPECT_STREQ(AttentionBias(mask.add_bias(scores)).lowered().name, "BlockSparseMask");
}

TEST(BlockSparseMask, SaysWhatIsWrong) {
  EXPECT_EQ(error_of([] { BlockSparseMask(at::ones({2, 2}, at::kBool), 24); }),
            "BlockSparseMask: block_size is 24, expected a multiple of 16 from 16 to 1024.");
  const BlockSparseMask mask(at::ones({8, 32, 31}, at::kBool), 64);
  const at::Tensor x = at::zeros({1, 2048, 8, 8});
  EXPECT_EQ(error_of([&] { memory_efficient_attention(x, x, x, mask); }),
            "BlockSparseMask: layout is [8, 32, 31], expected [8, 32, 32] for 2048 queries and 2048 keys in blocks of "
            "64.  Fix: give ceil(seqlen_k / 64) columns.");
}

}  // namespace
}  // namespace xformers::ops
