// xformers::nn::checkpoint against the same function without it.
#include "xformers/nn/checkpoint/checkpoint.h"

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <string>
#include <vector>

#include "xformers/ops/attention/attention.h"
#include "xformers/ops/swiglu/swiglu.h"

namespace xformers::nn {
namespace {

struct Weights {
  at::Tensor w = at::randn({16, 16}).requires_grad_(), gain = at::randn({16}).requires_grad_();
  int calls = 0;
};

// Products, an in-place operator, dropout and attention with dropout.
at::Tensor block(Weights& weights, const at::Tensor& x) {
  ++weights.calls;
  at::Tensor h = at::matmul(x, weights.w);
  h.relu_();
  h = at::dropout(h * weights.gain, 0.4, /*train=*/true);
  const at::Tensor q = h.unflatten(-1, at::IntArrayRef{2, 8});
  return ops::memory_efficient_attention(q, q, q, {}, /*p=*/0.3).flatten(-2).to(at::kFloat);
}

std::vector<at::Tensor> gradients(bool with_checkpoint, bool autocast) {
  at::manual_seed(3);
  Weights weights;
  const at::Tensor x = at::randn({2, 6, 16}).requires_grad_();
  at::autocast::set_autocast_enabled(at::kCPU, autocast);
  at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
  const auto function = [&](const at::Tensor& input) { return block(weights, input); };
  const at::Tensor out = with_checkpoint ? checkpoint(function, x) : function(x);
  const at::Tensor after = at::randn({4});  // drawn behind it
  at::autocast::set_autocast_enabled(at::kCPU, false);
  at::autocast::clear_cache();
  at::randn({100});
  out.square().sum().backward();
  EXPECT_EQ(weights.calls, with_checkpoint ? 2 : 1);
  return {out.detach(), after, at::randn({4}), x.grad(), weights.w.grad(), weights.gain.grad()};
}

class CheckpointTest : public testing::TestWithParam<bool> {};

TEST_P(CheckpointTest, EqualsTheFunction) {
  const auto expected = gradients(false, GetParam()), got = gradients(true, GetParam());
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_TRUE(at::equal(got[i], expected[i])) << i;
}

INSTANTIATE_TEST_SUITE_P(Autocast, CheckpointTest, testing::Bool());

TEST(Checkpoint, SeveralTensorsAndParametersAlone) {
  const at::Tensor w = at::randn({4, 4}).requires_grad_();
  const at::Tensor x = at::randn({3, 4}), index = at::arange(3);  // nothing that requires a gradient goes in
  const CheckpointedFunction function = [&](const std::vector<at::Tensor>& inputs) {
    return std::vector<at::Tensor>{inputs[0].matmul(w), inputs[1] + 1, inputs[0]};
  };
  const auto out = checkpoint(function, {x, index});
  EXPECT_TRUE(out[0].requires_grad());
  EXPECT_FALSE(out[1].requires_grad());
  EXPECT_TRUE(at::equal(out[2], x));
  EXPECT_FALSE(x.requires_grad());
  out[0].sum().backward();
  EXPECT_TRUE(at::allclose(w.grad(), x.t().matmul(at::ones({3, 4}))));
}

TEST(Checkpoint, NestedRegionsAndNoGrad) {
  const at::Tensor x = at::randn({3}, at::kDouble).requires_grad_();
  const auto inner = [](const at::Tensor& t) { return t.sin().exp(); };
  const auto outer = [&](const at::Tensor& t) { return checkpoint(inner, t * 2).square(); };
  checkpoint(outer, x).sum().backward();
  const at::Tensor got = x.grad();
  x.mutable_grad() = at::Tensor();
  inner(x * 2).square().sum().backward();
  EXPECT_TRUE(at::equal(got, x.grad()));
  const at::NoGradGuard no_grad;
  EXPECT_FALSE(checkpoint(outer, x).requires_grad());
}

std::string message(const std::function<void()>& call) {
  try {
    call();
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  }
  return "no error";
}

TEST(Checkpoint, Refuses) {
  const at::Tensor x = at::randn({3}).requires_grad_();
  const auto sine = [](const at::Tensor& t) { return t.sin(); };
  const at::Tensor out = checkpoint(sine, x).sum();
  EXPECT_NE(message([&] { torch::autograd::grad({out}, {x}); }).find("expected backward()"), std::string::npos);
  const at::Tensor again = checkpoint(sine, x).sum();
  again.backward();
  EXPECT_NE(message([&] { again.backward(); }).find("second"), std::string::npos);

  int calls = 0;
  const CheckpointedFunction changing = [&](const std::vector<at::Tensor>& inputs) {
    return std::vector<at::Tensor>(static_cast<size_t>(++calls), inputs[0].sin());
  };
  const at::Tensor first = checkpoint(changing, {x})[0].sum();
  EXPECT_NE(message([&] { first.backward(); }).find("returns 2 tensors"), std::string::npos);

  const at::Tensor written = x * 1;
  const at::Tensor stale = checkpoint(sine, written).sum();
  {
    const at::NoGradGuard no_grad;
    written.add_(1);
  }
  EXPECT_NE(message([&] { stale.backward(); }).find("inplace"), std::string::npos);
}

}  // namespace
}  // namespace xformers::nn
