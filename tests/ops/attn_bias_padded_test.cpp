// Packed queries against slots of keys, of which each sequence uses a part.
#include <gtest/gtest.h>

#include "tests/ops/bias_check.h"

namespace xformers::ops {
namespace {

using ::testing::IsSubstring;

// (i, j, nq, nk), counted inside a sequence
using InBlock = std::function<bool(int64_t, int64_t, int64_t, int64_t)>;

template <class Mask>
void check(const Mask& mask, const char* name, const InBlock& visible) {
  const Intervals q = mask.q_seqinfo.intervals(), k = mask.k_seqinfo.intervals();
  const int64_t seqlen_q = q.back().second, seqlen_k = mask.k_seqinfo.num_sequences() * mask.k_seqinfo.padding;
  const at::Tensor expected = mask_by_rule(seqlen_q, seqlen_k, [&](int64_t i, int64_t j) {
    const int64_t b = sequence_of(q, i);
    if (b != sequence_of(k, j)) return false;
    return visible(i - q[b].first, j - k[b].first, q[b].second - q[b].first, k[b].second - k[b].first);
  });
  EXPECT_TRUE(at::equal(mask.materialize({seqlen_q, seqlen_k}), expected)) << name;
  const Mask moved = mask.to(at::kCPU);
  EXPECT_TRUE(at::equal(moved.materialize({2, seqlen_q, seqlen_k}), expected.expand({2, seqlen_q, seqlen_k}))) << name;
  EXPECT_TRUE(moved.q_seqinfo.device_given && moved.k_seqinfo.device_given);
  EXPECT_STREQ(AttentionBias(moved).lowered().name, name);
  expect_attention_follows(mask, expected);
}

TEST(PaddedKeysBias, Full) {
  const auto rule = [](int64_t, int64_t, int64_t, int64_t) { return true; };
  check(BlockDiagonalPaddedKeysMask::from_seqlens({2, 1, 3}, 6, {6, 1, 4}), "BlockDiagonalPaddedKeysMask", rule);
  check(BlockDiagonalPaddedKeysMask::from_seqlens({2, 0, 3}, 5, {0, 5, 4}), "BlockDiagonalPaddedKeysMask", rule);
}

TEST(PaddedKeysBias, CausalWithOffset) {
  const auto rule = [](int64_t i, int64_t j, int64_t nq, int64_t nk) { return j <= i + nk - nq; };
  const char* name = "BlockDiagonalCausalWithOffsetPaddedKeysMask";
  check(BlockDiagonalCausalWithOffsetPaddedKeysMask::from_seqlens({2, 1, 3}, 6, {6, 1, 4}), name, rule);
  check(BlockDiagonalCausalWithOffsetPaddedKeysMask::from_seqlens({4, 1}, 6, {2, 0}), name, rule);  // rows without keys
}

TEST(PaddedKeysBias, CausalLocalAttention) {
  for (const int64_t window : {1, 2, 9}) {
    check(BlockDiagonalCausalLocalAttentionPaddedKeysMask::from_seqlens_local({2, 1, 3}, 6, {6, 1, 4}, window),
          "BlockDiagonalCausalLocalAttentionPaddedKeysMask",
          [=](int64_t i, int64_t j, int64_t nq, int64_t nk) { return i + nk - nq - window < j && j <= i + nk - nq; });
  }
  EXPECT_PRED_FORMAT2(IsSubstring, "the window size is 0", error_of([] {
                        BlockDiagonalCausalLocalAttentionPaddedKeysMask::from_seqlens_local({1}, 4, {2}, 0);
                      }));
}

// A decoding loop grows the lengths in place; host copies stay behind.
TEST(PaddedKeysBias, FollowsTheTensorOfLengths) {
  const auto mask = BlockDiagonalCausalWithOffsetPaddedKeysMask::from_seqlens({1, 1}, 6, {2, 3});
  mask.k_seqinfo.seqlen.add_(2);
  check(mask, "BlockDiagonalCausalWithOffsetPaddedKeysMask",
        [](int64_t i, int64_t j, int64_t nq, int64_t nk) { return j <= i + nk - nq; });
  EXPECT_EQ(mask.k_seqinfo.intervals(), (Intervals{{0, 4}, {6, 11}}));
}

TEST(PaddedKeysBias, RefusesWhatMakesNoSense) {
  EXPECT_PRED_FORMAT2(IsSubstring, "1 query lengths and 2 key lengths",
                      error_of([] { BlockDiagonalPaddedKeysMask::from_seqlens({1}, 4, {2, 2}); }));
  EXPECT_PRED_FORMAT2(IsSubstring, "the longest sequence is 5, expected at most the padding, 4",
                      error_of([] { BlockDiagonalCausalWithOffsetPaddedKeysMask::from_seqlens({1}, 4, {5}); }));
  EXPECT_EQ(
      error_of([] { BlockDiagonalPaddedKeysMask::from_seqlens({1, 1}, 4, {2, 3}).materialize({2, 7}); }),
      "attn_bias: the shape to materialize is [2, 7], expected [..., 2, 8].  Fix: use the total lengths of queries "
      "and keys.");
}

}  // namespace
}  // namespace xformers::ops
