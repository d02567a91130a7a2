// The C++ example of docs/ops/score-modifiers.md, which shows the lines between the two markers.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

// [example]
#include "xformers/ops/attention/attention.h"

at::Tensor attend_modified(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, at::Tensor sinks) {
  namespace xops = xformers::ops;
  xops::ScoreOptions options{.softcap = 50};
  options.alibi_slopes = at::tensor({0.5f, 0.25f});  // [heads]
  options.sinks = sinks;                             // [heads], trained
  return xops::memory_efficient_attention(query, key, value, xops::LowerTriangularMask(), /*p=*/0, /*scale=*/{},
                                          /*out_dtype=*/{}, options);
}

// The scores of packed sequences get a bias at their place inside each sequence.
at::Tensor attend_packed(const at::Tensor& query, const at::Tensor& bias) {
  namespace xops = xformers::ops;
  const auto mask = xops::BlockDiagonalMask::from_seqlens({2, 3}).make_causal();
  return xops::memory_efficient_attention(query, query, query, xops::with_bias(mask, bias));
}
// [example]

namespace xformers::ops {
namespace {

TEST(Example, ModifiersRunAsDocumented) {
  at::manual_seed(0);
  const at::Tensor query = at::randn({1, 7, 2, 8}), key = at::randn({1, 7, 2, 8}), value = at::randn({1, 7, 2, 8});
  const at::Tensor sinks = at::zeros({2}).requires_grad_();
  const at::Tensor out = attend_modified(query, key, value, sinks);
  const at::Tensor i = at::arange(7).unsqueeze(1), j = at::arange(7);
  const at::Tensor slopes = at::tensor({0.5f, 0.25f}).view({2, 1, 1});
  at::Tensor scores = at::einsum("bihd,bjhd->bhij", {query, key}) / std::sqrt(8.0);
  scores = (50 * at::tanh(scores / 50) - slopes * (i - j).abs()).masked_fill(j > i, -INFINITY);
  const at::Tensor weights = scores.exp() / (1 + scores.exp().sum(-1, true));
  EXPECT_TRUE(at::allclose(out, at::einsum("bhij,bjhd->bihd", {weights, value}), 1e-5, 1e-6));
  out.sum().backward();
  EXPECT_EQ(sinks.grad().sizes(), sinks.sizes());
  EXPECT_GT(sinks.grad().abs().sum().item<double>(), 0);
}

TEST(Example, PackedBiasRunsAsDocumented) {
  at::manual_seed(0);
  const at::Tensor query = at::randn({1, 5, 2, 8}), bias = at::randn({1, 2, 3, 4}).requires_grad_();
  const at::Tensor out = attend_packed(query, bias);
  int64_t begin = 0;
  for (const int64_t length : {2, 3}) {
    const at::Tensor part = query.narrow(1, begin, length);
    const at::Tensor own = bias.narrow(2, 0, length).narrow(3, 0, length);
    const at::Tensor expected =
        memory_efficient_attention(part, part, part, LowerTriangularMask().add_bias(own.contiguous()));
    EXPECT_TRUE(at::allclose(out.narrow(1, begin, length), expected, 1e-5, 1e-6));
    begin += length;
  }
  out.sum().backward();
  EXPECT_EQ(bias.grad().sizes(), bias.sizes());
}

TEST(Example, ModifiersThatDoNotFitAreRefused) {
  const at::Tensor query = at::randn({1, 5, 2, 8});
  const auto mask = BlockDiagonalMask::from_seqlens({2, 3});
  EXPECT_THROW(with_bias(mask, at::randn({1, 2, 3, 2})), Error);
  EXPECT_THROW(with_bias(mask, at::randn({3, 2, 3, 3})), Error);
  EXPECT_THROW(memory_efficient_attention(query, query, query, {}, 0, {}, {}, {.softcap = -1}), Error);
  ScoreOptions sinks;
  sinks.sinks = at::zeros({2});
  EXPECT_THROW(memory_efficient_attention_partial(query, query, query, {}, {}, {}, sinks), Error);
}

// What holds a bias keeps it.
TEST(Example, BiasesOfSequencesAreKept) {
  const at::Tensor scores = at::randn({1, 2, 3, 4}), table = at::tensor({1, 0, 2, 3}, at::kInt).view({2, 2});
  const auto packed = with_bias(BlockDiagonalMask::from_seqlens({2, 3}), scores);
  EXPECT_TRUE(lower(packed.make_local_attention(2)).scores.is_same(scores));
  EXPECT_TRUE(lower(packed.make_causal_from_bottomright().to(at::kCPU)).scores.defined());
  const auto padded = with_bias(BlockDiagonalPaddedKeysMask::from_seqlens({2, 3}, 4, {4, 3}), scores);
  EXPECT_TRUE(lower(padded.make_paged(table, 2)).scores.is_same(scores));
  const auto gappy = with_bias(BlockDiagonalGappyKeysMask::from_seqlens({2, 3}, {0, 4, 8}, {4, 3}), scores);
  EXPECT_TRUE(lower(gappy.make_paged(table, 2, 4)).scores.is_same(scores));
  const at::Tensor shown = packed.materialize({1, 2, 5, 5});
  EXPECT_TRUE(shown.narrow(2, 2, 3).narrow(3, 2, 3).equal(scores.narrow(3, 0, 3)));
}

}  // namespace
}  // namespace xformers::ops
