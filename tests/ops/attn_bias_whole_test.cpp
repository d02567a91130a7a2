// Biases over the whole of every batch element.
#include <gtest/gtest.h>

#include <limits>

#include "tests/ops/bias_check.h"

namespace xformers::ops {
namespace {

using ::testing::IsSubstring;

template <class Mask>
void check(const Mask& mask, const char* name, const Visible& visible, int64_t seqlen_q, int64_t seqlen_k) {
  const at::Tensor expected = mask_by_rule(seqlen_q, seqlen_k, visible);
  EXPECT_TRUE(at::equal(mask.materialize({seqlen_q, seqlen_k}), expected)) << name;
  EXPECT_TRUE(at::equal(mask.to(at::kCPU).materialize({2, 3, seqlen_q, seqlen_k}, at::kBFloat16),
                        expected.to(at::kBFloat16).expand({2, 3, seqlen_q, seqlen_k})))
      << name;
  EXPECT_STREQ(AttentionBias(mask).lowered().name, name);
  expect_attention_follows(mask, expected);
}

TEST(WholeMatrixBias, LowerTriangular) {
  const auto rule = [](int64_t i, int64_t j) { return j <= i; };
  for (const auto& [nq, nk] : {std::pair{5, 7}, std::pair{7, 5}, std::pair{6, 6}}) {
    check(LowerTriangularMask{}, "LowerTriangularMask", rule, nq, nk);
  }
}

TEST(WholeMatrixBias, LowerTriangularFromBottomRight) {
  for (const auto& [nq, nk] : {std::pair{5, 7}, std::pair{7, 5}, std::pair{6, 6}}) {
    const int64_t d = nk - nq;
    check(
        LowerTriangularFromBottomRightMask{}, "LowerTriangularFromBottomRightMask",
        [=](int64_t i, int64_t j) { return j <= i + d; }, nq, nk);
    for (const int64_t window : {1, 2, 9}) {
      check(
          LowerTriangularFromBottomRightMask{}.make_local_attention(window),
          "LowerTriangularFromBottomRightLocalAttentionMask",
          [=](int64_t i, int64_t j) { return i + d - window < j && j <= i + d; }, nq, nk);
    }
  }
}

TEST(WholeMatrixBias, LocalFromBottomRight) {
  const LocalAttentionFromBottomRightMask mask(1, 2);
  const at::Tensor attended = mask.materialize({4, 4}).eq(0);
  EXPECT_TRUE(at::equal(attended, at::tensor({1, 1, 1, 0, 1, 1, 1, 1, 0, 1, 1, 1, 0, 0, 1, 1}).view({4, 4}).eq(1)));
  for (const auto& [nq, nk] : {std::pair{4, 5}, std::pair{7, 5}}) {
    const int64_t d = nk - nq;
    check(
        mask, "LocalAttentionFromBottomRightMask",
        [=](int64_t i, int64_t j) { return i + d - 1 <= j && j <= i + d + 2; }, nq, nk);
  }
  check(
      LocalAttentionFromBottomRightMask(0, 0), "LocalAttentionFromBottomRightMask",
      [](int64_t i, int64_t j) { return i == j; }, 4, 4);
}

TEST(WholeMatrixBias, CausalWithATensor) {
  const at::Tensor scores = at::randn({1, 2, 5, 7}, at::kDouble).requires_grad_();
  const LowerTriangularMaskWithTensorBias bias = LowerTriangularMask{}.add_bias(scores);
  const at::Tensor causal = mask_by_rule(5, 7, [](int64_t i, int64_t j) { return j <= i; });
  EXPECT_TRUE(at::equal(bias.materialize({1, 2, 5, 7}, at::kDouble), causal + scores.detach()));
  EXPECT_STREQ(AttentionBias(bias).lowered().name, "LowerTriangularMaskWithTensorBias");
  EXPECT_TRUE(bias.to(at::kMeta).bias.is_meta());
  expect_attention_follows(bias, causal, scores);
}

TEST(WholeMatrixBias, NoneAndTensors) {
  const LoweredBias none = AttentionBias().lowered();
  EXPECT_STREQ(none.name, "None");
  EXPECT_FALSE(none.scores.defined());
  EXPECT_EQ(none.window_left, -1);
  EXPECT_EQ(none.window_right, -1);
  const at::Tensor scores = at::randn({1, 2, 5, 7}, at::kDouble).requires_grad_();
  EXPECT_STREQ(AttentionBias(scores).lowered().name, "Tensor");
  EXPECT_STREQ(AttentionBias(at::Tensor()).lowered().name, "None");
  const at::Tensor everything = at::zeros({5, 7});
  expect_attention_follows(AttentionBias(), everything);
  expect_attention_follows(scores, everything, scores);
}

TEST(WholeMatrixBias, RefusesWindowsThatMakeNoSense) {
  EXPECT_EQ(error_of([] { LocalAttentionFromBottomRightMask(-1, 0); }),
            "attn_bias: window_left is -1, expected 0 or more.  Fix: 0 sees the diagonal alone.");
  EXPECT_PRED_FORMAT2(IsSubstring, "window_right is -2", error_of([] { LocalAttentionFromBottomRightMask(0, -2); }));
  EXPECT_EQ(error_of([] { LowerTriangularFromBottomRightMask{}.make_local_attention(0); }),
            "attn_bias: the window size is 0, expected 1 or more.  Fix: 1 sees the diagonal alone.");
  EXPECT_PRED_FORMAT2(IsSubstring, "undefined", error_of([] { LowerTriangularMask{}.add_bias(at::Tensor()); }));
}

}  // namespace
}  // namespace xformers::ops
