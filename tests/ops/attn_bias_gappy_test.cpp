// Packed queries against ranges of keys that overlap, come in any order and leave gaps.
#include <gtest/gtest.h>

#include "tests/ops/bias_check.h"

namespace xformers::ops {
namespace {

using ::testing::IsSubstring;

template <class Mask>
void check(const Mask& mask, const char* name, bool causal) {
  const Intervals q = mask.q_seqinfo.intervals(), k = mask.k_seqinfo.intervals();
  const int64_t seqlen_q = q.back().second, seqlen_k = mask.k_seqinfo.seqstart_host.back();
  const at::Tensor expected = mask_by_rule(seqlen_q, seqlen_k, [&](int64_t i, int64_t j) {
    const int64_t b = sequence_of(q, i);
    const auto [start, end] = k[b];
    if (j < start || end <= j) return false;
    const int64_t nq = q[b].second - q[b].first, nk = end - start;
    return !causal || j - start <= i - q[b].first + nk - nq;
  });
  EXPECT_TRUE(at::equal(mask.materialize({seqlen_q, seqlen_k}), expected)) << name;
  const Mask moved = mask.to(at::kCPU);
  EXPECT_TRUE(at::equal(moved.materialize({2, seqlen_q, seqlen_k}), expected.expand({2, seqlen_q, seqlen_k}))) << name;
  EXPECT_STREQ(AttentionBias(moved).lowered().name, name);
  expect_attention_follows(mask, expected);
}

TEST(GappyKeysBias, Full) {
  const char* name = "BlockDiagonalGappyKeysMask";
  check(BlockDiagonalGappyKeysMask::from_seqlens({2, 1, 3}, {1, 5, 8, 12}, {3, 2, 4}), name, false);
  check(BlockDiagonalGappyKeysMask::from_seqlens({2, 1, 3}, {6, 0, 2, 10}, {4, 7, 5}), name, false);  // overlapping
  check(BlockDiagonalGappyKeysMask::from_seqlens({2, 0, 3}, {0, 0, 5, 9}, {0, 3, 2}), name, false);
}

TEST(GappyKeysBias, CausalWithOffset) {
  const char* name = "BlockDiagonalCausalWithOffsetGappyKeysMask";
  check(BlockDiagonalCausalWithOffsetGappyKeysMask::from_seqlens({2, 1, 3}, {6, 0, 2, 10}, {4, 7, 5}), name, true);
  check(BlockDiagonalCausalWithOffsetGappyKeysMask::from_seqlens({4, 1}, {1, 3, 8}, {2, 4}), name, true);
}

TEST(GappyKeysBias, RefusesWhatMakesNoSense) {
  EXPECT_PRED_FORMAT2(IsSubstring, "1 query lengths and 2 key lengths",
                      error_of([] { BlockDiagonalGappyKeysMask::from_seqlens({1}, {0, 2, 4}, {2, 2}); }));
  EXPECT_PRED_FORMAT2(IsSubstring, "there are 2 starts, expected 3", error_of([] {
                        BlockDiagonalCausalWithOffsetGappyKeysMask::from_seqlens({1, 1}, {0, 2}, {2, 2});
                      }));
  EXPECT_EQ(
      error_of([] { BlockDiagonalGappyKeysMask::from_seqlens({1}, {1, 4}, {2}).materialize({1, 3}); }),
      "attn_bias: the shape to materialize is [1, 3], expected [..., 1, 4].  Fix: use the total lengths of queries "
      "and keys.");
}

}  // namespace
}  // namespace xformers::ops
