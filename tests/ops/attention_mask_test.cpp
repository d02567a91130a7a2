// AttentionMask in C++: what it hides, what it keeps, and that attention takes it as a band or as values. The same
// rules in Python: tests/python/test_attention_mask.py.
#include "xformers/nn/functional/attention_mask.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "xformers/kernels/base/error.h"
#include "xformers/nn/attention/mechanisms.h"

namespace xformers::nn {
namespace {

constexpr float kHidden = -std::numeric_limits<float>::infinity();

TEST(AttentionMask, HoldsWhatIsAdded) {
  const at::Tensor keep = at::tensor({1, 0, 1, 1, 1, 0}).view({2, 3}).to(at::kBool);
  const at::Tensor added = at::tensor({0.f, kHidden, 0.f, 0.f, 0.f, kHidden}).view({1, 2, 3});
  for (const AttentionMask& mask :
       {AttentionMask(added), AttentionMask(added[0]), AttentionMask::from_bool(keep),
        AttentionMask::from_multiplicative(keep.to(at::kInt)), AttentionMask::from_multiplicative(-0.5 * keep)}) {
    EXPECT_TRUE(at::equal(mask.values(), added));
    EXPECT_TRUE(at::equal(mask.to_bool()[0], keep));
    EXPECT_EQ(mask.sizes(), at::IntArrayRef({1, 2, 3}));
    EXPECT_TRUE(mask.seq_len() == 2 && mask.to_seq_len() == 3 && !mask.is_causal() && mask.dtype() == at::kFloat);
  }
  EXPECT_THROW(AttentionMask{keep}, Error);
  EXPECT_THROW(AttentionMask{at::ones({3})}, Error);
  EXPECT_THROW(AttentionMask{at::ones({2, 3}).requires_grad_()}, Error);
  EXPECT_THROW(AttentionMask::from_bool(at::ones({2, 3})), Error);
  EXPECT_THROW(AttentionMask::from_multiplicative(keep), Error);
}

TEST(AttentionMask, OfTheFuture) {
  const AttentionMask mask = AttentionMask::make_causal(3, 4, at::kDouble);
  EXPECT_TRUE(mask.is_causal() && mask.dtype() == at::kDouble && mask.device().is_cpu());
  EXPECT_EQ(mask.sizes(), at::IntArrayRef({1, 3, 4}));
  EXPECT_TRUE(mask.masks(3, 4).causal && !mask.masks(3, 4).att_mask);  // nobody has read values
  EXPECT_TRUE(mask.masks(2, 2).causal);
  EXPECT_FALSE(mask.masks(3, 5).causal);
  EXPECT_TRUE(at::equal(mask.to_bool()[0], at::ones({3, 4}, at::kBool).tril()));
  EXPECT_EQ(AttentionMask::make_causal(5).sizes(), at::IntArrayRef({1, 5, 5}));
}

TEST(AttentionMask, CropsMovesAndJoins) {
  const AttentionMask causal = AttentionMask::make_causal(5), crop = causal.make_crop(2, 3);
  EXPECT_TRUE(crop.is_causal());
  EXPECT_TRUE(at::equal(crop.to_bool()[0], at::ones({2, 3}, at::kBool).tril()));
  const at::Tensor values = at::randn({2, 5, 5});
  const AttentionMask mask(values), part = mask.make_crop(4);
  EXPECT_TRUE(at::equal(part.values(), values.narrow(1, 0, 4).narrow(2, 0, 4)));
  EXPECT_EQ(part.values().const_data_ptr(), values.const_data_ptr());
  EXPECT_EQ(mask.make_crop(9).sizes(), values.sizes());
  EXPECT_EQ(mask.to(at::kHalf).values().scalar_type(), at::kHalf);
  EXPECT_EQ(causal.to(at::kHalf).dtype(), at::kHalf);
  EXPECT_TRUE(causal.to(at::kHalf).is_causal() && causal.to(at::kHalf).masks(5, 5).causal);
  EXPECT_TRUE(mask.to(at::kFloat).values().is_same(mask.values()));

  const at::Tensor keep = at::rand({5, 5}) < 0.7;
  const AttentionMask chosen = AttentionMask::from_bool(keep);
  EXPECT_TRUE(at::equal((mask + chosen).values(), values + chosen.values()));
  EXPECT_FALSE((causal + chosen).is_causal());
  EXPECT_TRUE((causal & chosen).is_causal());
  EXPECT_TRUE(at::equal((causal & chosen).to_bool()[0], keep.tril()));
}

TEST(AttentionMask, AttentionTakesIt) {
  const at::Tensor q = at::randn({2, 6, 3, 8}), k = at::randn({2, 6, 3, 8}), v = at::randn({2, 6, 3, 8});
  ScaledDotProduct plain(ScaledDotProductOptions{}), causal(ScaledDotProductOptions{.causal = true});
  const at::Tensor expected = causal->forward(q, k, v);
  const AttentionMask mask = AttentionMask::make_causal(6);
  EXPECT_TRUE(at::equal(plain->forward(q, k, v, mask.masks(6, 6)), expected));
  mask.values();  // from now on it is a tensor
  EXPECT_TRUE(mask.masks(6, 6).att_mask.has_value());
  EXPECT_TRUE(at::allclose(plain->forward(q, k, v, mask.masks(6, 6)), expected, 1e-4, 1e-5));
}

}  // namespace
}  // namespace xformers::nn
