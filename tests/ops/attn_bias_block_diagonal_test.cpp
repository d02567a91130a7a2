// Packed sequences: every query sees keys of its own sequence only.
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
  const int64_t seqlen_q = q.back().second, seqlen_k = k.back().second;
  const at::Tensor expected = mask_by_rule(seqlen_q, seqlen_k, [&](int64_t i, int64_t j) {
    const int64_t b = sequence_of(q, i);
    if (b != sequence_of(k, j)) return false;
    return visible(i - q[b].first, j - k[b].first, q[b].second - q[b].first, k[b].second - k[b].first);
  });
  EXPECT_TRUE(at::equal(mask.materialize({seqlen_q, seqlen_k}), expected)) << name;
  const Mask moved = mask.to(at::kCPU);
  EXPECT_TRUE(at::equal(moved.materialize({3, seqlen_q, seqlen_k}, at::kBFloat16),
                        expected.to(at::kBFloat16).expand({3, seqlen_q, seqlen_k})))
      << name;
  EXPECT_TRUE(moved.q_seqinfo.device_given);
  EXPECT_STREQ(AttentionBias(mask).lowered().name, name);
  expect_attention_follows(mask, expected);
}

BlockDiagonalMask more_keys() { return BlockDiagonalMask::from_seqlens({2, 3, 1}, at::IntArrayRef{4, 3, 6}); }
BlockDiagonalMask fewer_keys() { return BlockDiagonalMask::from_seqlens({5, 0, 3, 2}, at::IntArrayRef{4, 2, 5, 0}); }

TEST(BlockDiagonalBias, Full) {
  const auto rule = [](int64_t, int64_t, int64_t, int64_t) { return true; };
  check(BlockDiagonalMask::from_seqlens({3, 1, 5}), "BlockDiagonalMask", rule);
  check(more_keys(), "BlockDiagonalMask", rule);
  check(fewer_keys(), "BlockDiagonalMask", rule);
}

TEST(BlockDiagonalBias, Causal) {
  const auto rule = [](int64_t i, int64_t j, int64_t, int64_t) { return j <= i; };
  check(BlockDiagonalCausalMask::from_seqlens({3, 1, 5}), "BlockDiagonalCausalMask", rule);
  check(more_keys().make_causal(), "BlockDiagonalCausalMask", rule);
  check(fewer_keys().make_causal(), "BlockDiagonalCausalMask", rule);
}

TEST(BlockDiagonalBias, CausalFromBottomRight) {
  const auto rule = [](int64_t i, int64_t j, int64_t nq, int64_t nk) { return j <= i + nk - nq; };
  check(more_keys().make_causal_from_bottomright(), "BlockDiagonalCausalFromBottomRightMask", rule);
  check(BlockDiagonalCausalFromBottomRightMask::from_seqlens({3, 1}), "BlockDiagonalCausalFromBottomRightMask", rule);
  EXPECT_EQ(
      error_of([] { fewer_keys().make_causal_from_bottomright(); }),
      "attn_bias: block 0 has 4 keys, expected at least its number of queries, 5.  Fix: the first queries would see "
      "no key; use make_causal, or give more keys.");
}

TEST(BlockDiagonalBias, LocalAttention) {
  for (const int64_t window : {1, 2, 8}) {
    const auto rule = [=](int64_t i, int64_t j, int64_t, int64_t) { return i - window < j && j <= i; };
    const char* name = "BlockDiagonalCausalLocalAttentionMask";
    check(more_keys().make_local_attention(window), name, rule);
    check(BlockDiagonalCausalMask::from_seqlens({4, 6}).make_local_attention(window), name, rule);
    check(BlockDiagonalCausalLocalAttentionMask::from_seqlens({4, 6}, std::nullopt, window), name, rule);
  }
  EXPECT_EQ(
      error_of([] { BlockDiagonalMask::from_seqlens({9}, at::IntArrayRef{4}).make_local_attention(5); }),
      "attn_bias: block 0 has 4 keys, expected more than 4 for 9 queries and a window of 5.  Fix: the last queries "
      "would see no key; give more keys or a larger window.");
  EXPECT_PRED_FORMAT2(IsSubstring, "the window size is 0", error_of([] { more_keys().make_local_attention(0); }));
}

TEST(BlockDiagonalBias, LocalAttentionFromBottomRight) {
  for (const int64_t window : {1, 3, 8}) {
    const auto rule = [=](int64_t i, int64_t j, int64_t nq, int64_t nk) {
      return i + nk - nq - window < j && j <= i + nk - nq;
    };
    const char* name = "BlockDiagonalCausalLocalAttentionFromBottomRightMask";
    check(more_keys().make_local_attention_from_bottomright(window), name, rule);
    check(BlockDiagonalCausalLocalAttentionFromBottomRightMask::from_seqlens({4, 1}, at::IntArrayRef{4, 6}, window),
          name, rule);
  }
  EXPECT_PRED_FORMAT2(IsSubstring, "block 0 has 4 keys",
                      error_of([] { fewer_keys().make_local_attention_from_bottomright(2); }));
  EXPECT_PRED_FORMAT2(IsSubstring, "the window size is -1",
                      error_of([] { more_keys().make_local_attention_from_bottomright(-1); }));
}

TEST(BlockDiagonalBias, FromTensorListAndSplit) {
  const std::vector<at::Tensor> tensors = {at::randn({2, 3, 4}), at::randn({1, 5, 4}), at::randn({3, 1, 4})};
  const auto [mask, packed] = BlockDiagonalCausalMask::from_tensor_list(tensors);
  static_assert(std::is_same_v<decltype(mask), const BlockDiagonalCausalMask>);
  EXPECT_EQ(packed.sizes(), at::IntArrayRef({1, 14, 4}));
  EXPECT_EQ(mask.batch_sizes, (std::vector<int64_t>{2, 1, 3}));
  EXPECT_TRUE(mask.q_seqinfo.device_given);
  const auto parts = mask.make_local_attention(2).split(packed);  // batch sizes travel on
  ASSERT_EQ(parts.size(), tensors.size());
  for (size_t i = 0; i < parts.size(); ++i) EXPECT_TRUE(at::equal(parts[i], tensors[i]));
  EXPECT_EQ(BlockDiagonalMask::from_seqlens({6, 8}).split(packed)[1].sizes(), at::IntArrayRef({1, 8, 4}));
}

TEST(BlockDiagonalBias, FromTensorListsOfQueriesKeysAndValues) {
  const std::vector<at::Tensor> queries = {at::randn({2, 3, 4}), at::randn({1, 5, 4})};
  const std::vector<at::Tensor> keys = {at::randn({2, 7, 4}), at::randn({1, 6, 4})};
  const std::vector<at::Tensor> values = {at::randn({2, 7, 9}), at::randn({1, 6, 9})};
  const auto [mask, q, k, v] = BlockDiagonalCausalFromBottomRightMask::from_tensor_lists_qkv(queries, keys, values);
  EXPECT_EQ(q.sizes(), at::IntArrayRef({1, 11, 4}));
  EXPECT_EQ(k.sizes(), at::IntArrayRef({1, 20, 4}));
  EXPECT_EQ(v.sizes(), at::IntArrayRef({1, 20, 9}));
  EXPECT_TRUE(at::equal(mask.split_queries(q)[0], queries[0]));
  EXPECT_TRUE(at::equal(mask.split_kv(v)[1], values[1]));
  EXPECT_PRED_FORMAT2(IsSubstring, "use split_queries or split_kv", error_of([&, &m = mask, &x = q] { m.split(x); }));
  EXPECT_FALSE(std::get<3>(BlockDiagonalMask::from_tensor_lists_qkv(queries, keys)).defined());
  EXPECT_PRED_FORMAT2(IsSubstring, "the queries' batch sizes are [2, 1], the keys' [1, 2]",
                      error_of([&] { BlockDiagonalMask::from_tensor_lists_qkv(queries, {keys[1], keys[0]}); }));
  EXPECT_PRED_FORMAT2(IsSubstring, "keys and values differ",
                      error_of([&] { BlockDiagonalMask::from_tensor_lists_qkv(queries, keys, queries); }));
}

TEST(BlockDiagonalBias, EqualLengthsShareOneTensor) {
  const auto mask = BlockDiagonalMask::from_seqlens({3, 4}, at::IntArrayRef{3, 4});
  EXPECT_TRUE(mask.q_seqinfo.seqstart.is_same(mask.k_seqinfo.seqstart));
  const auto moved = mask.to(at::kMeta);
  EXPECT_TRUE(moved.q_seqinfo.seqstart.is_same(moved.k_seqinfo.seqstart));
}

TEST(BlockDiagonalBias, RefusesWhatMakesNoSense) {
  EXPECT_EQ(error_of([] { BlockDiagonalMask::from_seqlens({1, 2}, at::IntArrayRef{3}); }),
            "attn_bias: there are 2 query lengths and 1 key lengths, expected as many of each.  Fix: give one pair of "
            "lengths per sequence; 0 is a length.");
  EXPECT_PRED_FORMAT2(IsSubstring, "the list of tensors is empty",
                      error_of([] { BlockDiagonalMask::from_tensor_list({}); }));
  EXPECT_PRED_FORMAT2(IsSubstring, "shape [3]",
                      error_of([] { BlockDiagonalMask::from_tensor_list({at::zeros({3})}); }));
  EXPECT_EQ(
      error_of([] { BlockDiagonalMask::from_seqlens({1, 2}).materialize({4, 3}); }),
      "attn_bias: the shape to materialize is [4, 3], expected [..., 3, 3].  Fix: use the total lengths of queries "
      "and keys.");
}

}  // namespace
}  // namespace xformers::ops
