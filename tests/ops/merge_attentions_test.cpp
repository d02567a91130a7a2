// memory_efficient_attention_partial and merge_attentions in C++: parts of the keys make attention over all of them.
#include "xformers/ops/merge_attentions/merge_attentions.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "xformers/ops/attention/attention.h"

namespace xformers::ops {
namespace {

void expect_close(const at::Tensor& got, const at::Tensor& expected, double tolerance) {
  EXPECT_EQ(got.sizes(), expected.sizes());
  EXPECT_TRUE(at::allclose(got, expected.to(got.scalar_type()), tolerance, tolerance)) << (got - expected).abs().max();
}

struct Inputs {
  at::Tensor query, key, value;
};

Inputs random_inputs(at::ScalarType dtype) {
  at::manual_seed(0);
  const auto make = [&](int64_t seqlen) { return at::randn({2, seqlen, 3, 8}, at::dtype(dtype)).requires_grad_(); };
  return {make(6), make(20), make(20)};
}

// Attention over keys [begin, end).
std::tuple<at::Tensor, at::Tensor> part(const Inputs& in, int64_t begin, int64_t end) {
  return memory_efficient_attention_partial(in.query, in.key.slice(1, begin, end), in.value.slice(1, begin, end));
}

TEST(MergeAttentions, PartsMakeTheWhole) {
  const Inputs in = random_inputs(at::kDouble);
  const auto [out0, lse0] = part(in, 0, 7);
  const auto [out1, lse1] = part(in, 7, 20);
  const auto [out, lse] = merge_attentions({out0, out1}, {lse0, lse1});
  const auto [whole, whole_lse] = memory_efficient_attention_with_lse(in.query, in.key, in.value);
  expect_close(out, whole, 1e-13);
  expect_close(lse, whole_lse, 1e-13);

  const at::Tensor grad_out = at::randn_like(out), grad_lse = at::randn_like(lse);
  const auto got = torch::autograd::grad({out, lse}, {in.query, in.key, in.value}, {grad_out, grad_lse});
  const auto want = torch::autograd::grad({whole, whole_lse}, {in.query, in.key, in.value}, {grad_out, grad_lse});
  for (int i = 0; i < 3; ++i) expect_close(got[i], want[i], 1e-12);
}

TEST(MergeAttentions, PartsAreWide) {
  for (const auto dtype : {at::kBFloat16, at::kHalf, at::kFloat, at::kDouble}) {
    const Inputs in = random_inputs(dtype);
    const auto wide = dtype == at::kDouble ? at::kDouble : at::kFloat;
    EXPECT_EQ(std::get<0>(part(in, 0, 7)).scalar_type(), wide);
    const auto chosen = memory_efficient_attention_partial(in.query, in.key, in.value, {}, std::nullopt, at::kHalf);
    EXPECT_EQ(std::get<0>(chosen).scalar_type(), at::kHalf);
    EXPECT_EQ(memory_efficient_attention(in.query, in.key, in.value, {}, 0, std::nullopt, at::kFloat).scalar_type(),
              at::kFloat);
  }
}

TEST(MergeAttentions, WithoutLse) {
  const Inputs in = random_inputs(at::kFloat);
  const c10::NoGradGuard no_grad;
  const auto [out, lse] = part(in, 0, 20);
  const auto [merged, none] = merge_attentions({out}, {lse}, /*write_lse=*/false, at::kBFloat16);
  EXPECT_EQ(none.numel(), 0);
  EXPECT_EQ(merged.scalar_type(), at::kBFloat16);
  EXPECT_TRUE(at::equal(merged, out.to(at::kBFloat16)));
}

TEST(MergeAttentions, ErrorsSayWhatCame) {
  const Inputs in = random_inputs(at::kFloat);
  const auto [out, lse] = part(in, 0, 20);
  try {
    merge_attentions({out, out}, {lse});
    FAIL() << "two parts with one lse went through";
  } catch (const Error& error) {
    EXPECT_STREQ(
        error.what(),
        "merge_attentions: lse is 1 parts, expected 2 like attn.  Fix: pass the lse that came with each part.");
  }
}

}  // namespace
}  // namespace xformers::ops
