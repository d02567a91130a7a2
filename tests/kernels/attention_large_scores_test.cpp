// A finite score is never a hidden one, however low: biases of finfo.min, -1e30 and -1e9, whole rows of them too, and
// products as large. Everything is that of the softmax of the scores as fp32 holds them.
#include <cmath>
#include <functional>
#include <limits>

#include "tests/kernels/attention_each_kernel.h"
#include "tests/kernels/kept_references.h"
#include "tests/reference/rounding.h"

namespace xformers::testing {
namespace {

double lowest(DType dtype) {
  switch (dtype) {
    case DType::kFloat32: return -static_cast<double>(std::numeric_limits<float>::max());
    case DType::kFloat64: return -std::numeric_limits<double>::max();
    case DType::kBFloat16: return -3.3895313892515355e38;
    case DType::kFloat16: return -65504;
  }
  return 0;
}

void for_each_row(const AttentionCase& c, const std::function<void(const Sizes&)>& visit) {
  Sizes at{};
  for (at[0] = 0; at[0] < c.batch; ++at[0])
    for (at[1] = 0; at[1] < c.num_groups(); ++at[1])
      for (at[2] = 0; at[2] < c.heads_per_group(); ++at[2])
        for (at[3] = 0; at[3] < c.seqlen_q; ++at[3]) visit(at);
}

// Products of quarters, times a power of two, are exact in any order: a score is rounded once, where the bias is added.
void make_products_exact(AttentionRun& run) {
  for (StridedTensor* t : {&run.q, &run.k}) {
    const StridedTensor& drawn = *t;
    t->fill([&](const Sizes& at) { return std::round(drawn.get(at) * 4) / 4; });
  }
  run.held_scores = true;
}

// Every third row is `low` everywhere, every third on half of its keys; batch element 1 is padded on the left.
void pad(AttentionRun& run, double low) {
  const AttentionCase& c = run.attention_case();
  make_products_exact(run);
  for_each_row(c, [&](Sizes at) {
    for (at[4] = 0; at[4] < c.seqlen_k; ++at[4]) {
      const bool padding = at[0] == 1 && at[4] < c.seqlen_k / 3;
      if (at[3] % 3 == 0 || (at[3] % 3 == 1 && at[4] % 2 == 0) || padding) run.bias.set(at, low);
    }
  });
}

// log(sum) of a row is there although its scores are so large that one number forgets it.
::testing::AssertionResult keeps_log_sum(const AttentionRun& run) {
  const AttentionCase& c = run.attention_case();
  const reference::AttentionResult& expected = references(run.problem(), c.dtype).exact;
  const reference::Values lse = run.lse.values(), low = run.lse_low.values();
  const double unit = reference::unit_roundoff(run.lse.dtype());
  for (size_t i = 0; i < lse.size(); ++i) {
    const double exact = expected.lse[i], got = lse[i] + low[i], size = std::abs(exact);
    if (std::isfinite(exact) && size > 0x1p40) continue;  // the reference itself is a double
    const double most =
        (size_of(c.dtype) == 2 ? 0x1p-14 : 16 * unit) + 4 * unit * std::min(size, 1024.0) + 0x1p-51 * size;
    if (exact == got || std::abs(got - exact) <= most) continue;
    return ::testing::AssertionFailure() << to_text(c) << " (" << last_kernels() << "): row " << i << " has lse "
                                         << lse[i] << " + " << low[i] << ", expected " << exact;
  }
  return ::testing::AssertionSuccess();
}

void check(const AttentionRun& run) {
  EXPECT_TRUE(matches_reference(run));
  EXPECT_TRUE(keeps_log_sum(run));
}

const std::vector<std::string> kPadded = {"attention:*,b2,q70,k83,h2,d64,bias",
                                          "attention:*,b2,q70,k83,h2,d64,bias@odd",
                                          "attention:*,b2,q100,k130,h2,d128,scale0.125,causal_br,bias,dlse",
                                          "attention:*,q40,k300,h1,d32,scale0.125,bias,splits3",
                                          "attention:*,b2,q3,k700,h4,kv2,d64,bias",
                                          "attention:*,q3,k600,h4,kv1,d128,scale0.125,bias,wide",
                                          "attention:*,q40,k200,h2,d256,scale0.125,bias",
                                          "attention:*,b2,q64,k97,h2,d64,p0.2,bias",
                                          "attention:*,q20,k30,h1,d257,scale0.125,bias",
                                          "attention:*,q9,k4200,h2,kv1,d32,scale0.125,bias"};

class LargeScores : public EachKernel {};
TEST_P(LargeScores, OfTheLowestNumber) {
  force(kPadded, [](AttentionRun& run) { pad(run, lowest(run.attention_case().dtype)); }, check, Runs::kBoth, "bias");
}
TEST_P(LargeScores, OfAPadding) {
  for (double low : {-1e30, -1e9}) {
    force(
        kPadded, [&](AttentionRun& run) { pad(run, std::max(low, lowest(run.attention_case().dtype))); }, check,
        Runs::kBoth, "bias");
  }
}

const std::vector<std::string> kProducts = {"attention:*,b2,q70,k83,h2,d64,scale1",
                                            "attention:*,q100,k130,h1,d128,scale1,causal_br",
                                            "attention:*,q40,k300,h1,d32,scale1,splits3",
                                            "attention:*,q1,k700,h8,kv2,d64,scale1",
                                            "attention:*,q3,k600,h4,kv1,d128,scale1,splits4",
                                            "attention:*,q40,k200,h2,d256,scale1",
                                            "attention:*,q5+0+70,k9+33+64,h2,d32,causal,scale1",
                                            "attention:*,b2,q64,k97,h2,d64,p0.2,scale1",
                                            "attention:*,q20,k30,h1,d257,scale1",
                                            "attention:*,q9,k4200,h2,kv1,d32,scale1"};

// Scores of a row in five are 0, those of the others the square of `root`, up to their signs, less 0, `step` or twice
// that.
void multiply_out(AttentionRun& run, double root, double step) {
  run.held_scores = true;
  run.q.fill([&](const Sizes& at) {
    if (at[1] % 5 == 4) return 0.0;
    return at[4] == 0 ? (at[1] % 2 ? -root : root) : at[4] == 1 ? step : 0;
  });
  run.k.fill([&](const Sizes& at) { return at[4] == 0 ? root : at[4] == 1 ? -static_cast<double>(at[1] % 3) : 0; });
}
TEST_P(LargeScores, OfProducts) {
  force(kProducts, [](AttentionRun& run) { multiply_out(run, 0x1p10, 1); }, check);
}
TEST_P(LargeScores, OfEqualProducts) {
  force(kProducts, [](AttentionRun& run) { multiply_out(run, 0x1p12, 0); }, check);
}
INSTANTIATE_TEST_SUITE_P(Kernels, LargeScores, ::testing::ValuesIn(each_kernel()), kernel_name);

}  // namespace
}  // namespace xformers::testing
