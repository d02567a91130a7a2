// memory_efficient_attention in C++, against the formula in fp64.
#include "xformers/ops/attention/attention.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <limits>
#include <string>

namespace xformers::ops {
namespace {

constexpr double kHidden = -std::numeric_limits<double>::infinity();

struct Inputs {
  at::Tensor query, key, value;
};

Inputs random_inputs(int64_t batch, int64_t seqlen_q, int64_t seqlen_k, at::ScalarType dtype = at::kDouble) {
  at::manual_seed(0);
  const auto options = at::dtype(dtype);
  const auto make = [&](int64_t seqlen) { return at::randn({batch, seqlen, 2, 8}, options).requires_grad_(); };
  return {make(seqlen_q), make(seqlen_k), make(seqlen_k)};
}

// visible(query, key), both counted from the start of the tensors
template <class Visible>
at::Tensor score_mask(int64_t seqlen_q, int64_t seqlen_k, const Visible& visible) {
  at::Tensor mask = at::zeros({seqlen_q, seqlen_k}, at::kDouble);
  auto cell = mask.accessor<double, 2>();
  for (int64_t i = 0; i < seqlen_q; ++i) {
    for (int64_t j = 0; j < seqlen_k; ++j) cell[i][j] = visible(i, j) ? 0 : kHidden;
  }
  return mask;
}

at::Tensor formula(const Inputs& in, const at::Tensor& added) {
  const auto heads_first = [](const at::Tensor& x) { return x.transpose(1, 2); };
  const at::Tensor scores =
      at::matmul(heads_first(in.query), heads_first(in.key).transpose(-1, -2)) / std::sqrt(8.0) + added;
  return heads_first(at::matmul(at::softmax(scores, -1), heads_first(in.value)));
}

void expect_close(const at::Tensor& got, const at::Tensor& expected) {
  EXPECT_TRUE(at::allclose(got, expected, /*rtol=*/1e-12, /*atol=*/1e-12)) << got << "\nexpected\n" << expected;
}

void check(const Inputs& in, const AttentionBias& bias, const at::Tensor& added) {
  const at::Tensor out = memory_efficient_attention(in.query, in.key, in.value, bias);
  const at::Tensor expected = formula(in, added);
  expect_close(out, expected);
  const at::Tensor grad = at::randn_like(out);
  const auto got = torch::autograd::grad({out}, {in.query, in.key, in.value}, {grad});
  const auto want = torch::autograd::grad({expected}, {in.query, in.key, in.value}, {grad});
  for (int i = 0; i < 3; ++i) expect_close(got[i], want[i]);
}

TEST(Attention, WithoutBias) { check(random_inputs(2, 5, 7), {}, at::zeros({})); }

TEST(Attention, LowerTriangular) {
  check(random_inputs(2, 5, 7), LowerTriangularMask{}, score_mask(5, 7, [](int64_t i, int64_t j) { return j <= i; }));
}

TEST(Attention, LowerTriangularFromBottomRight) {
  check(random_inputs(2, 5, 7), LowerTriangularFromBottomRightMask{},
        score_mask(5, 7, [](int64_t i, int64_t j) { return j <= i + 2; }));
}

TEST(Attention, LocalFromBottomRight) {
  check(random_inputs(2, 5, 7), LocalAttentionFromBottomRightMask(2, 1),
        score_mask(5, 7, [](int64_t i, int64_t j) { return i + 2 - 2 <= j && j <= i + 2 + 1; }));
}

TEST(Attention, BlockDiagonal) {
  const auto same_block = [](int64_t i, int64_t j) { return (i < 2) == (j < 3); };
  const auto bias = BlockDiagonalMask::from_seqlens({2, 3}, at::IntArrayRef{3, 4});
  check(random_inputs(1, 5, 7), bias, score_mask(5, 7, same_block));
  check(random_inputs(1, 5, 7), bias.make_causal(),
        score_mask(5, 7, [&](int64_t i, int64_t j) { return same_block(i, j) && (i < 2 ? j <= i : j - 3 <= i - 2); }));
}

TEST(Attention, TensorBiasAndItsGradient) {
  const Inputs in = random_inputs(2, 5, 7);
  const at::Tensor bias = at::randn({2, 2, 5, 7}, at::kDouble).requires_grad_();
  check(in, bias, bias);
  const auto grad_of = [&](const at::Tensor& out) { return torch::autograd::grad({out.square().sum()}, {bias})[0]; };
  expect_close(grad_of(memory_efficient_attention(in.query, in.key, in.value, bias)), grad_of(formula(in, bias)));
}

TEST(Attention, BooleanMask) {
  const at::Tensor added = score_mask(5, 7, [](int64_t i, int64_t j) { return j <= i; });
  check(random_inputs(2, 5, 7), added.eq(0).expand({2, 2, 5, 7}), added);
}

TEST(Attention, ScaleAndLse) {
  const Inputs in = random_inputs(2, 5, 7);
  const auto [out, lse] = memory_efficient_attention_with_lse(in.query, in.key, in.value, {}, 0.0, 0.5);
  const at::Tensor scores = at::matmul(in.query.transpose(1, 2), in.key.transpose(1, 2).transpose(-1, -2)) * 0.5;
  expect_close(lse, scores.logsumexp(-1));
  EXPECT_EQ(lse.sizes(), at::IntArrayRef({2, 2, 5}));
}

TEST(Attention, DropoutFollowsTheDefaultGenerator) {
  const Inputs in = random_inputs(2, 5, 7);
  const auto run = [&] { return memory_efficient_attention(in.query, in.key, in.value, {}, 0.5); };
  at::manual_seed(4);
  const at::Tensor first = run(), second = run();
  at::manual_seed(4);
  EXPECT_TRUE(at::equal(run(), first));
  EXPECT_FALSE(at::equal(first, second));
}

TEST(Attention, HalfPrecisionKeepsItsDtype) {
  for (const auto dtype : {at::kBFloat16, at::kHalf, at::kFloat}) {
    const Inputs in = random_inputs(2, 5, 7, dtype);
    const at::Tensor out = memory_efficient_attention(in.query, in.key, in.value, LowerTriangularMask{});
    EXPECT_EQ(out.scalar_type(), dtype);
    EXPECT_TRUE(out.is_contiguous());
  }
}

std::string message_of(const auto& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "no xformers::Error";
}

TEST(Attention, ErrorsSayWhatCameAndHowToFixIt) {
  const Inputs in = random_inputs(2, 5, 7);
  const std::string message =
      message_of([&] { memory_efficient_attention(in.query, in.key.narrow(3, 0, 6), in.value); });
  EXPECT_EQ(message,
            "attention: key.head_dim is 6, expected 8.  Fix: only value may have its own head_dim.\n"
            "  query [2, 5, 2, 8] fp64 cpu · key [2, 7, 2, 6] fp64 cpu · value [2, 7, 2, 8] fp64 cpu");

  const auto expect_part = [&](const std::string& part, const auto& call) {
    EXPECT_NE(message_of(call).find(part), std::string::npos) << message_of(call);
  };
  expect_part("p is 2", [&] { memory_efficient_attention(in.query, in.key, in.value, {}, 2.0); });
  expect_part("query.batch is 2, expected 1", [&] {
    memory_efficient_attention(in.query, in.key, in.value, BlockDiagonalMask::from_seqlens({5}, at::IntArrayRef{7}));
  });
  expect_part("3 beside a LowerTriangularFromBottomRightMask, expected 4 or 5", [&] {
    memory_efficient_attention(in.query.select(2, 0), in.key.select(2, 0), in.value.select(2, 0),
                               LowerTriangularFromBottomRightMask{});
  });
}

// A failure inside LibTorch is a c10::Error, whose message without the backtrace is what users should see.
TEST(Attention, DoubleBackwardIsRefused) {
  const Inputs in = random_inputs(1, 3, 3);
  const at::Tensor out = memory_efficient_attention(in.query, in.key, in.value);
  const at::Tensor grad = torch::autograd::grad({out.sum()}, {in.query}, {}, /*retain_graph=*/true,
                                                /*create_graph=*/true)[0];
  try {
    grad.sum().backward();
    FAIL() << "double backward went through";
  } catch (const c10::Error& error) {
    EXPECT_NE(std::string(error.what_without_backtrace()).find("attention_backward is not implemented"),
              std::string::npos);
  }
}

}  // namespace
}  // namespace xformers::ops
