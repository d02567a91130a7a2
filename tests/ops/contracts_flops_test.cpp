// Counting of floating-point operations.
#include <gtest/gtest.h>

#include "tests/ops/bias_check.h"
#include "xformers/ops/attention/attention_cost.h"
#include "xformers/ops/attention/contracts/flops.h"

namespace xformers::ops {
namespace {

const std::optional<at::Tensor> kNone;

int64_t flops(at::IntArrayRef q, at::IntArrayRef k, at::IntArrayRef v, bool causal = false, bool backward = false,
              bool heads_first = false) {
  return attention_flops(q, k, v, causal, backward, heads_first, {kNone, kNone, kNone});
}

TEST(Flops, TwoProductsPerPair) {
  EXPECT_EQ(flops({2, 5, 3, 8}, {2, 7, 3, 8}, {2, 7, 3, 16}), 2 * 3 * (2 * 5 * 7 * (8 + 16)));
  EXPECT_EQ(flops({2, 3, 5, 8}, {2, 3, 7, 8}, {2, 3, 7, 16}, false, false, /*heads_first=*/true),
            2 * 3 * (2 * 5 * 7 * (8 + 16)));
  EXPECT_EQ(flops({6, 5, 8}, {6, 7, 8}, {6, 7, 8}), 6 * 2 * 5 * 7 * 16);
  EXPECT_EQ(flops({2, 5, 4, 3, 8}, {2, 7, 4, 3, 8}, {2, 7, 4, 3, 8}), 2 * 4 * 3 * 2 * 5 * 7 * 16);
}

TEST(Flops, CausalCountsFromTheBottomRight) {
  const auto head_flops = [](int64_t q, int64_t k, int64_t d, int64_t d_v, bool causal) {
    return ops::head_flops(q, k, d, d_v, {.window_left = -1, .window_right = causal ? 0 : -1, .bottom_right = true});
  };
  EXPECT_EQ(head_flops(5, 5, 8, 16, true), 5 * 5 * 24);
  EXPECT_EQ(head_flops(5, 7, 8, 16, true), (2 * 5 * 2 + 5 * 5) * 24);
  EXPECT_EQ(head_flops(7, 5, 8, 16, true), 5 * 5 * 24);
  EXPECT_EQ(head_flops(0, 5, 8, 16, true), 0);
}

TEST(Flops, BackwardIsTwoAndAHalfTimesForward) {
  EXPECT_EQ(flops({1, 4, 1, 8}, {1, 4, 1, 8}, {1, 4, 1, 8}, true, true), 4 * 4 * 16 * 5 / 2);
}

TEST(Flops, PackedSequencesAreSummed) {
  const std::optional<at::Tensor> q = at::tensor({0, 2, 5}, at::kInt), k = at::tensor({0, 4, 10}, at::kInt);
  const std::optional<at::Tensor> used = at::tensor({3, 1}, at::kInt);
  const auto of = [&](const std::optional<at::Tensor>& cu_k, const std::optional<at::Tensor>& used_k) {
    return attention_flops({1, 5, 3, 8}, {1, 10, 3, 8}, {1, 10, 3, 8}, false, false, false, {q, cu_k, used_k});
  };
  EXPECT_EQ(of(k, kNone), 3 * 2 * (2 * 4 + 3 * 6) * 16);
  EXPECT_EQ(of(k, used), 3 * 2 * (2 * 3 + 3 * 1) * 16);
  EXPECT_EQ(of(kNone, used), 3 * 2 * (2 * 3 + 3 * 1) * 16);  // paged
}

TEST(Flops, LengthsThatCannotBeReadCountAsEqual) {
  const std::optional<at::Tensor> offsets = at::empty({5}, at::dtype(at::kInt).device(at::kMeta));
  EXPECT_EQ(
      attention_flops({1, 40, 1, 8}, {1, 80, 1, 8}, {1, 80, 1, 8}, false, false, false, {offsets, offsets, kNone}),
      4 * 2 * 10 * 20 * 16);
}

TEST(Flops, RefusesOtherShapes) {
  EXPECT_PRED_FORMAT2(testing::IsSubstring, "the number of dimensions of query, key and value is 2, 2 and 2",
                      error_of([] { flops({2, 3}, {2, 3}, {2, 3}); }));
  EXPECT_PRED_FORMAT2(testing::IsSubstring, "4 where heads come first",
                      error_of([] { flops({2, 3, 8}, {2, 3, 8}, {2, 3, 8}, false, false, true); }));
}

}  // namespace
}  // namespace xformers::ops
