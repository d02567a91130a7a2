// What parts of the keys count for when they are put together, by every kernel that works on parts, or on the whole.
#include <cmath>
#include <limits>

#include "tests/kernels/attention_each_kernel.h"

namespace xformers::testing {
namespace {

class Parts : public EachKernel {
 protected:
  static std::vector<std::string> in_parts(const std::vector<std::string>& calls) {
    std::vector<std::string> texts;
    for (int n : {1, 2, 3, 7, 32, 33, 128}) {
      for (const std::string& call : calls) texts.push_back(call + ",splits" + std::to_string(n));
    }
    return texts;
  }
};

// Scores are all as low, and so far from 0 that the lse of a part in one number would have forgotten how many keys it
// has. Parts are unequally long; a window leaves most of them nothing.
TEST_P(Parts, CountByTheirKeys) {
  const auto large = [](const AttentionCase& c) { return c.dtype == DType::kFloat16 ? 0x1p13 : 0x1p15; };
  force(
      in_parts({"attention:*,q2,k700,h4,kv2,d64,scale1", "attention:*,q18,k500,h1,d64,scale1",
                "attention:*,q3,k700,h2,kv1,d128,scale1,band99_0_br"}),
      [&](AttentionRun& run) {
        const double x = large(run.attention_case());
        run.held_scores = true;
        run.q.fill([&](const Sizes& at) { return at[4] == 0 ? -x : 0.0; });
        run.k.fill([&](const Sizes& at) { return at[4] == 0 ? x : 0.0; });
      },
      [&](const AttentionRun& run) {
        const AttentionCase& c = run.attention_case();
        const double score = -std::pow(large(c), 2);
        const double keys = c.band.window_left == kUnbounded ? static_cast<double>(c.seqlen_k) : 100;
        EXPECT_TRUE(matches_reference(run));
        for (int64_t query = 0; query < c.seqlen_q; ++query) {
          const double lse = run.lse.get({0, 0, 0, query, 0}), low = run.lse_low.get({0, 0, 0, query, 0});
          EXPECT_NEAR((lse - score) + low, std::log(keys), 1e-4) << to_text(c) << " query " << query;
        }
      });
}

TEST_P(Parts, WithANaNMakeTheRowOne) {
  for (int64_t key : {0, 350, 699}) {
    force(
        in_parts({"attention:*,q2,k700,h4,kv2,d64", "attention:*,q18,k700,h1,d64"}),
        [&](AttentionRun& run) {
          const AttentionCase& c = run.attention_case();
          Sizes at{0, key, 0, 0, 5};
          for (at[2] = 0; at[2] < c.num_groups(); ++at[2])
            for (at[3] = 0; at[3] < c.heads_per_group(); ++at[3]) {
              run.k.set(at, std::numeric_limits<double>::quiet_NaN());
            }
        },
        [](const AttentionRun& run) {
          const AttentionCase& c = run.attention_case();
          for (int64_t query = 0; query < c.seqlen_q; ++query) {
            EXPECT_TRUE(std::isnan(run.lse.get({0, 0, 0, query, 0}))) << to_text(c) << " query " << query;
            EXPECT_TRUE(std::isnan(run.out.get({0, query, 0, 0, 3}))) << to_text(c) << " query " << query;
          }
        },
        Runs::kForward);
  }
}
INSTANTIATE_TEST_SUITE_P(Kernels, Parts, ::testing::ValuesIn(each_kernel()), kernel_name);

}  // namespace
}  // namespace xformers::testing
