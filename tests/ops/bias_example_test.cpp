// The C++ example of docs/ops/attention-biases.md, which shows the lines between the two markers: a bias of one's own.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

// [example]
#include "xformers/ops/attention/attention.h"

namespace mine {

struct Dilated {  // causal, and of the keys before it a query sees every `step`-th one alone
  at::Tensor seen;
  Dilated(int64_t length, int64_t step) {
    const at::Tensor distance = at::arange(length).unsqueeze(1) - at::arange(length);
    seen = distance.remainder(step).eq(0).expand({2, 8, length, length});
  }
};
xformers::ops::LoweredBias lower(const Dilated& bias) { return {.scores = bias.seen, .window_right = 0}; }

at::Tensor attend(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value) {
  return xformers::ops::memory_efficient_attention(query, key, value, Dilated(query.size(1), 3));
}

}  // namespace mine
// [example]

namespace xformers::ops {
namespace {

TEST(Example, ABiasOfOnesOwnMasks) {
  at::manual_seed(0);
  const auto random = [] { return at::randn({2, 20, 8, 16}); };
  const at::Tensor query = random(), key = random(), value = random();
  const at::Tensor seen = mine::Dilated(20, 3).seen.logical_and(at::ones({20, 20}, at::kBool).tril());
  EXPECT_TRUE(at::allclose(mine::attend(query, key, value), memory_efficient_attention(query, key, value, seen),
                           /*rtol=*/1e-5, /*atol=*/1e-6));
}

}  // namespace
}  // namespace xformers::ops
