#include "tests/ops/bias_check.h"

#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <limits>

#include "xformers/ops/attention/attention.h"

namespace xformers::ops {
namespace {

constexpr int64_t kHeads = 2, kHeadDim = 8;

struct Result {
  at::Tensor out, lse;
};

// Dense attention of one batch element; a row without keys gives 0 and -inf.
Result dense(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, const at::Tensor& added) {
  const auto heads_first = [](const at::Tensor& x) { return x.transpose(1, 2); };
  const at::Tensor some_key = added.isneginf().logical_not().any(-1, /*keepdim=*/true);
  const at::Tensor scores =
      at::matmul(heads_first(query), heads_first(key).transpose(-1, -2)) / std::sqrt(double{kHeadDim}) +
      at::where(some_key, added, 0.0);
  const at::Tensor out = at::matmul(at::softmax(scores, -1), heads_first(value)) * some_key;
  const at::Tensor lse =
      at::where(some_key.squeeze(-1), scores.logsumexp(-1), -std::numeric_limits<double>::infinity());
  return {heads_first(out), lse};
}

void expect_close(const char* name, const at::Tensor& got, const at::Tensor& expected) {
  EXPECT_TRUE(at::allclose(got, expected, /*rtol=*/1e-11, /*atol=*/1e-11)) << name << " is\n"
                                                                           << got << "\nexpected\n"
                                                                           << expected;
}

}  // namespace

at::Tensor mask_by_rule(int64_t seqlen_q, int64_t seqlen_k, const Visible& visible) {
  at::Tensor mask = at::zeros({seqlen_q, seqlen_k}, at::kFloat);
  auto cell = mask.accessor<float, 2>();
  for (int64_t i = 0; i < seqlen_q; ++i) {
    for (int64_t j = 0; j < seqlen_k; ++j) {
      cell[i][j] = visible(i, j) ? 0.0f : -std::numeric_limits<float>::infinity();
    }
  }
  return mask;
}

int64_t sequence_of(const Intervals& intervals, int64_t i) {
  for (size_t sequence = 0; sequence < intervals.size(); ++sequence) {
    if (intervals[sequence].first <= i && i < intervals[sequence].second) return static_cast<int64_t>(sequence);
  }
  return -1;
}

void expect_attention_follows(const AttentionBias& bias, const at::Tensor& mask, const at::Tensor& scores) {
  at::manual_seed(0);
  const int64_t seqlen_q = mask.size(0), seqlen_k = mask.size(1);
  const auto random = [](int64_t seqlen) {
    return at::randn({1, seqlen, kHeads, kHeadDim}, at::kDouble).requires_grad_();
  };
  const at::Tensor query = random(seqlen_q), key = random(seqlen_k), value = random(seqlen_k);
  const at::Tensor added = scores.defined() ? mask.to(at::kDouble) + scores : mask.to(at::kDouble);
  const Result expected = dense(query, key, value, added);
  const auto [out, lse] = memory_efficient_attention_with_lse(query, key, value, bias);
  expect_close("out", out, expected.out);
  expect_close("lse", lse, expected.lse);

  const at::Tensor grad = at::randn_like(out);
  std::vector<at::Tensor> inputs{query, key, value};
  if (scores.defined()) inputs.push_back(scores);
  const auto got = torch::autograd::grad({out}, inputs, {grad});
  const auto wanted = torch::autograd::grad({expected.out}, inputs, {grad});
  const char* names[] = {"dq", "dk", "dv", "dbias"};
  for (size_t i = 0; i < inputs.size(); ++i) expect_close(names[i], got[i], wanted[i]);
}

std::string error_of(const std::function<void()>& fn) {
  try {
    fn();
  } catch (const Error& error) {
    return error.what();
  }
  return "no xformers::Error";
}

}  // namespace xformers::ops
