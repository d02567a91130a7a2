// Who sees whom: causal from either corner, local windows, rows that see no key.
#include <cmath>

#include "tests/kernels/attention_check.h"

namespace xformers::testing {

INSTANTIATE_TEST_SUITE_P(
    Causal, AttentionCases,
    cases({"attention:*,q100,k100,h2,d32,causal", "attention:*,q100,k163,h2,d32,causal",
           "attention:*,q163,k100,h2,d32,causal", "attention:*,q100,k163,h2,d32,causal_br",
           "attention:*,q163,k100,h2,d32,causal_br", "attention:bf16,b2,q300,k300,h2,d64,causal_br,dlse",
           "attention:fp32,q5,k1000,h2,d64,causal_br", "attention:fp32,q1000,k5,h2,d64,causal_br"}),
    test_name);

INSTANTIATE_TEST_SUITE_P(Local, AttentionCases,
                         cases({"attention:*,q150,k150,h2,d32,band10_0", "attention:*,q150,k150,h2,d32,band3_5_br",
                                "attention:*,q150,k150,h1,d32,band0_0", "attention:*,q150,k250,h1,d32,band64_0_br",
                                "attention:*,q250,k150,h1,d32,band17_31", "attention:fp32,q90,k200,h1,d32,band*_20",
                                "attention:fp32,q90,k200,h1,d32,band20_*_br", "attention:fp32,q90,k20,h1,d32,band0_*",
                                "attention:fp32,q90,k20,h1,d32,band*_0_br", "attention:bf16,q500,k500,h1,d64,band100_0",
                                "attention:fp32,q30,k30,h1,d32,band1000000_1000000",
                                "attention:fp32,q20,k90,h1,d8,band5_5,dlse"}),
                         test_name);

// More queries than keys, counted from the bottom right: the first rows see nothing.
class RowsWithoutKeys : public ::testing::TestWithParam<AttentionCase> {};
TEST_P(RowsWithoutKeys, AreZeroWithLseMinusInfinity) {
  const AttentionCase& c = GetParam();
  AttentionRun run(c);
  run.run();
  const int64_t blind = c.seqlen_q - c.seqlen_k;
  ASSERT_GT(blind, 0);
  for (int64_t i = 0; i < blind; ++i) {
    EXPECT_EQ(run.lse.get({0, 0, 0, i, 0}), -INFINITY) << "row " << i;
    for (int64_t d = 0; d < c.dim_v(); ++d) EXPECT_EQ(run.out.get({0, i, 0, 0, d}), 0) << "row " << i;
    for (int64_t d = 0; d < c.head_dim; ++d) EXPECT_EQ(run.dq.get({0, i, 0, 0, d}), 0) << "row " << i;
  }
  EXPECT_TRUE(matches_reference(run));
}
INSTANTIATE_TEST_SUITE_P(Masks, RowsWithoutKeys,
                         cases({"attention:*,q200,k60,d64,causal_br", "attention:*,q65,k1,d16,causal_br,dlse",
                                "attention:*,q70,k64,d40,causal_br,p0.2"}),
                         test_name);

}  // namespace xformers::testing
