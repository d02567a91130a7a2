// Packed queries against keys in pages.
#include <gtest/gtest.h>

#include "tests/ops/bias_check.h"

namespace xformers::ops {
namespace {

using ::testing::IsSubstring;

constexpr int64_t kPageSize = 4;

// Two sequences of three pages each, in no order; 7 pages exist, page 2 belongs to nobody.
at::Tensor tables() { return at::tensor({5, 0, 3, 6, 1, 4}, at::kInt).view({2, 3}); }

// The physical mask: sequence b sees logical keys t of [start_b, start_b + len_b) in row table[b][t / 4] * 4 + t % 4.
at::Tensor physical_mask(const Intervals& q, const Intervals& k, bool causal) {
  const at::Tensor table = tables();
  const auto page = table.accessor<int32_t, 2>();
  return mask_by_rule(q.back().second, 7 * kPageSize, [&](int64_t i, int64_t row) {
    const int64_t b = sequence_of(q, i);
    for (int64_t t = k[b].first; t < k[b].second; ++t) {
      if (page[b][t / kPageSize] * kPageSize + t % kPageSize != row) continue;
      const int64_t nq = q[b].second - q[b].first, nk = k[b].second - k[b].first;
      return !causal || t - k[b].first <= i - q[b].first + nk - nq;
    }
    return false;
  });
}

template <class Mask>
void check(const Mask& mask, const char* name, const Intervals& keys, bool causal) {
  const at::Tensor expected = physical_mask(mask.q_seqinfo.intervals(), keys, causal);
  const int64_t seqlen_q = expected.size(0), logical = 2 * 3 * kPageSize;
  EXPECT_TRUE(at::equal(mask.materialize({seqlen_q, logical}), expected)) << name;
  const Mask moved = mask.to(at::kCPU);
  EXPECT_TRUE(at::equal(moved.materialize({3, seqlen_q, logical}), expected.expand({3, seqlen_q, 7 * kPageSize})));
  EXPECT_STREQ(AttentionBias(moved).lowered().name, name);
  EXPECT_EQ(AttentionBias(moved).lowered().page_size, kPageSize);
  EXPECT_TRUE(mask.to(at::kMeta).block_tables.is_meta());
  expect_attention_follows(mask, expected);
}

TEST(PagedBias, PaddedKeys) {
  const char* name = "PagedBlockDiagonalPaddedKeysMask";
  const Intervals keys{{0, 11}, {0, 5}};
  check(PagedBlockDiagonalPaddedKeysMask::from_seqlens({2, 3}, {11, 5}, tables(), kPageSize), name, keys, false);
  const auto unpaged = BlockDiagonalPaddedKeysMask::from_seqlens({2, 3}, 20, {11, 5});
  const auto paged = unpaged.make_paged(tables(), kPageSize);
  EXPECT_EQ(paged.k_seqinfo.padding, 3 * kPageSize);
  EXPECT_EQ(unpaged.k_seqinfo.padding, 20);
  check(paged, name, keys, false);
}

TEST(PagedBias, CausalWithOffset) {
  const char* name = "PagedBlockDiagonalCausalWithOffsetPaddedKeysMask";
  const Intervals keys{{0, 11}, {0, 1}};  // the first two of three queries see nothing
  check(PagedBlockDiagonalCausalWithOffsetPaddedKeysMask::from_seqlens({2, 3}, {11, 1}, tables(), kPageSize), name,
        keys, true);
  check(BlockDiagonalCausalWithOffsetPaddedKeysMask::from_seqlens({2, 3}, 12, {11, 1}).make_paged(tables(), kPageSize),
        name, keys, true);
}

TEST(PagedBias, GappyKeys) {
  const char* name = "PagedBlockDiagonalGappyKeysMask";
  const Intervals keys{{1, 10}, {5, 9}};
  check(PagedBlockDiagonalGappyKeysMask::from_seqlens({2, 3}, {1, 5}, {9, 4}, tables(), kPageSize), name, keys, false);
  check(BlockDiagonalGappyKeysMask::from_seqlens({2, 3}, {1, 105, 200}, {9, 4}).make_paged(tables(), kPageSize, 100),
        name, keys, false);
}

// The numbers of a bias that was built without a device go where its pages are.
TEST(PagedBias, LivesWhereItsPagesAre) {
  const auto mask = PagedBlockDiagonalPaddedKeysMask::from_seqlens({2, 3}, {11, 5}, tables().to(at::kMeta), kPageSize);
  EXPECT_TRUE(mask.q_seqinfo.seqstart.is_meta() && mask.k_seqinfo.seqlen.is_meta());
}

TEST(PagedBias, FollowsTheTensorOfLengths) {
  const auto unpaged = BlockDiagonalPaddedKeysMask::from_seqlens({2, 3}, 12, {6, 5});
  const auto paged = unpaged.make_paged(tables(), kPageSize);
  unpaged.k_seqinfo.seqlen.add_(3);
  check(paged, "PagedBlockDiagonalPaddedKeysMask", {{0, 9}, {0, 8}}, false);
}

TEST(PagedBias, RefusesWhatMakesNoSense) {
  const auto of = [](at::IntArrayRef kv_seqlen, const at::Tensor& table, int64_t page_size) {
    return error_of([=] { PagedBlockDiagonalPaddedKeysMask::from_seqlens({2, 3}, kv_seqlen, table, page_size); });
  };
  EXPECT_PRED_FORMAT2(IsSubstring, "page_size is 0, expected 1 or more", of({1, 2}, tables(), 0));
  EXPECT_EQ(
      of({13, 2}, tables(), 4),
      "attn_bias: the longest sequence of keys is 13, expected at most 12, what a row of block_tables holds.  Fix: "
      "give more pages.");
  EXPECT_PRED_FORMAT2(IsSubstring, "block_tables.dtype is int64, expected int32",
                      of({1, 2}, tables().to(at::kLong), 4));
  EXPECT_PRED_FORMAT2(IsSubstring, "shape [6], expected [2, pages]", of({1, 2}, tables().view({6}), 4));
  EXPECT_PRED_FORMAT2(IsSubstring, "shape [3, 2], expected [2, pages]", of({1, 2}, tables().view({3, 2}), 4));
  EXPECT_PRED_FORMAT2(IsSubstring, "shape None", of({1, 2}, at::Tensor(), 4));
  EXPECT_PRED_FORMAT2(IsSubstring, "2 query lengths and 1 key lengths", of({1}, tables(), 4));

  const auto gappy = BlockDiagonalGappyKeysMask::from_seqlens({2, 3}, {1, 50, 200}, {9, 4});
  EXPECT_PRED_FORMAT2(IsSubstring,
                      "the keys of sequence 1 are [-50, -46) of its own pages, expected a range inside [0, 12)",
                      error_of([&] { gappy.make_paged(tables(), 4, 100); }));
  EXPECT_PRED_FORMAT2(IsSubstring, "notional_padding is -1", error_of([&] { gappy.make_paged(tables(), 4, -1); }));
  EXPECT_PRED_FORMAT2(IsSubstring, "page_size is 4294967296", of({1, 2}, tables(), int64_t{1} << 32));
  EXPECT_PRED_FORMAT2(IsSubstring, "the keys of sequence 1 are [49, 53)",
                      error_of([&] { gappy.make_paged(tables(), 4, 1); }));
  EXPECT_PRED_FORMAT2(IsSubstring, "there are 3 starts, expected 2", error_of([] {
                        PagedBlockDiagonalGappyKeysMask::from_seqlens({2, 3}, {1, 5, 9}, {2, 2}, tables(), 4);
                      }));

  const auto mask = PagedBlockDiagonalPaddedKeysMask::from_seqlens({2, 3}, {1, 2}, tables(), 4);
  EXPECT_PRED_FORMAT2(IsSubstring, "[5, 28], expected [..., 5, 24]", error_of([&] { mask.materialize({5, 28}); }));
  // Page -1 is the second of the first sequence: an error where its keys are in use, nothing where they are not.
  const at::Tensor negative = tables().sub(1);
  const auto used = PagedBlockDiagonalPaddedKeysMask::from_seqlens({2, 3}, {5, 2}, negative, 4);
  EXPECT_PRED_FORMAT2(IsSubstring, "a page in use is -1, expected 0 or more",
                      error_of([&] { used.materialize({5, 24}); }));
  const auto unused = PagedBlockDiagonalPaddedKeysMask::from_seqlens({2, 3}, {4, 2}, negative, 4);
  EXPECT_EQ(unused.materialize({5, 24}).eq(0).sum().item<int64_t>(), 2 * 4 + 3 * 2);
}

// The last entry of the second row names page 5 again, but none of its keys lie there.
TEST(PagedBias, EntriesThatAreNotUsedShowNothing) {
  const at::Tensor table = at::tensor({7, 2, 0, 7, 5, 5}, at::kInt).view({2, 3});
  const auto mask = PagedBlockDiagonalPaddedKeysMask::from_seqlens({1, 1}, {40, 20}, table, 16);
  const at::Tensor seen = mask.materialize({2, 96}).eq(0).sum(1);
  EXPECT_EQ(seen[0].item<int64_t>(), 40);
  EXPECT_EQ(seen[1].item<int64_t>(), 20);
}

}  // namespace
}  // namespace xformers::ops
