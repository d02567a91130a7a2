// The reference held against itself: gradients by finite differences, and cases whose answer is known.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/kernels/attention_check.h"
#include "tests/reference/attention.h"

namespace xformers::testing {
namespace {

using reference::AttentionProblem;
using reference::AttentionResult;
using reference::Values;

// <out, dout> + <lse, dlse>: its gradients are what backward computes.
double loss(const AttentionProblem& problem) {
  const AttentionResult result = exact(problem, DType::kFloat32);
  double sum = 0;
  for (size_t i = 0; i < result.out.size(); ++i) sum += result.out[i] * problem.dout[i];
  for (size_t i = 0; i < problem.dlse.size(); ++i) {
    if (std::isfinite(result.lse[i])) sum += result.lse[i] * problem.dlse[i];
  }
  return sum;
}

void expect_finite_differences(const AttentionProblem& problem, Values AttentionProblem::* input,
                               const Values& gradient) {
  constexpr double kStep = 1e-5;
  ASSERT_EQ((problem.*input).size(), gradient.size());
  for (size_t i = 0; i < gradient.size(); ++i) {
    AttentionProblem shifted = problem;
    if (std::isinf((problem.*input)[i])) continue;
    (shifted.*input)[i] += kStep;
    const double above = loss(shifted);
    (shifted.*input)[i] -= 2 * kStep;
    EXPECT_NEAR(gradient[i], (above - loss(shifted)) / (2 * kStep), 1e-8) << "element " << i;
  }
}

}  // namespace

class ReferenceGradients : public ::testing::TestWithParam<AttentionCase> {};
TEST_P(ReferenceGradients, AreFiniteDifferences) {
  const AttentionProblem problem = AttentionRun(GetParam()).problem();
  const AttentionResult result = exact(problem, DType::kFloat32);
  expect_finite_differences(problem, &AttentionProblem::q, result.dq);
  expect_finite_differences(problem, &AttentionProblem::k, result.dk);
  expect_finite_differences(problem, &AttentionProblem::v, result.dv);
  expect_finite_differences(problem, &AttentionProblem::bias, result.dbias);
}
INSTANTIATE_TEST_SUITE_P(
    Reference, ReferenceGradients,
    cases({"attention:fp64,b2,q4,k5,h2,d3,dv2,dlse", "attention:fp64,q5,k3,h1,d3,causal_br,p0.3,dlse",
           "attention:fp64,q4,k6,h2,d3,bias_prefix2,causal", "attention:fp64,q3+2,k2+4,h1,d4,band1_1_br"}),
    test_name);

// With q = 0 every visible key weighs the same: out is the mean of v, lse the log of how many there are.
TEST(Reference, ZeroQueriesGiveTheMeanOfVisibleValues) {
  AttentionProblem problem = AttentionRun(parse_attention_case("attention:fp64,q3,k5,h1,d2,dv1,causal_br")).problem();
  problem.q.assign(problem.q.size(), 0);
  problem.v = {1, 2, 3, 4, 10};
  const AttentionResult result = exact(problem, DType::kFloat64);
  EXPECT_DOUBLE_EQ(result.out[0], 2);
  EXPECT_DOUBLE_EQ(result.out[1], 2.5);
  EXPECT_DOUBLE_EQ(result.out[2], 4);
  EXPECT_DOUBLE_EQ(result.lse[0], std::log(3.0));
  EXPECT_DOUBLE_EQ(result.lse[2], std::log(5.0));
}

// Who sees whom, written out.
TEST(Reference, BandsAsDrawn) {
  const auto draw = [](const char* text) {
    const AttentionProblem problem = AttentionRun(parse_attention_case(text)).problem();
    std::string picture;
    for (int64_t i = 0; i < problem.seqlen_q; ++i) {
      for (int64_t j = 0; j < problem.seqlen_k; ++j)
        picture += problem.visible(problem.sequences[0], 0, i, j) ? 'x' : '.';
      picture += ' ';
    }
    return picture;
  };
  EXPECT_EQ(draw("attention:fp32,q3,k5,causal"), "x.... xx... xxx.. ");
  EXPECT_EQ(draw("attention:fp32,q3,k5,causal_br"), "xxx.. xxxx. xxxxx ");
  EXPECT_EQ(draw("attention:fp32,q5,k3,causal_br"), "... ... x.. xx. xxx ");
  EXPECT_EQ(draw("attention:fp32,q3,k5,band1_0_br"), ".xx.. ..xx. ...xx ");
  EXPECT_EQ(draw("attention:fp32,q3,k5,band0_1"), "xx... .xx.. ..xx. ");
  EXPECT_EQ(draw("attention:fp32,q3,k5,band*_1"), "xx... xxx.. xxxx. ");
}

}  // namespace xformers::testing
