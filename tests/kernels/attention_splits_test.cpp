// Chosen splits of the keys, wide outputs, and prefixes of -inf that leave some parts without anything to see.
#include <cmath>

#include "tests/kernels/attention_check.h"

namespace xformers::testing {

namespace {
std::vector<std::string> splits() {
  std::vector<std::string> texts;
  for (int n : {1, 2, 3, 8, 64, 300}) {
    const std::string splits = ",splits" + std::to_string(n);
    texts.push_back("attention:*,b2,q1,k200,h4,kv2,d64" + splits);  // 300: more parts than keys
    texts.push_back("attention:*,q70,k150,h2,d32,causal_br,p0.2,dlse" + splits);
    texts.push_back("attention:*,q1+5+40,used0+100+37,page16,h4,kv1,d32" + splits);
    texts.push_back("attention:*,b2,q3,k300,h4,kv1,d64,bias_prefix270" + splits);  // the first parts see nothing
    texts.push_back("attention:*,q40,k300,h1,d32,bias_prefix300" + splits);        // nor does any other
  }
  return texts;
}
}  // namespace
INSTANTIATE_TEST_SUITE_P(Splits, AttentionCases, cases(splits()), test_name);

// A batch in which parts of some rows see nothing at all.
INSTANTIATE_TEST_SUITE_P(BatchOfPrefixes, AttentionCases,
                         cases({"attention:*,b4,q1,k700,h8,kv2,d64,bias_prefix650",
                                "attention:*,b3,q1,k1100,h4,kv1,d128,bias_blocks,t3",
                                "attention:*,b4,q2,k600,h4,kv1,d64,bias_prefix599,splits7,wide"}),
                         test_name);

INSTANTIATE_TEST_SUITE_P(WideOut, AttentionCases,
                         cases({"attention:*,b2,q1,k200,h4,kv2,d64,wide", "attention:*,q70,k150,h2,d40,causal_br,wide",
                                "attention:*,q5+0+70,k9+33+64,h2,d32,wide,padded",
                                "attention:*,q1,k3000,h4,kv2,d64,wide,t3", "attention:bf16,q40,k0,h2,d64,wide"}),
                         test_name);

// An infinite value reaches its own dim of out, and no other.
TEST(InfiniteValues, StayInTheirDim) {
  for (const AttentionCase& c :
       parse_attention_cases({"attention:*,q1,k100,h8,kv2,d64", "attention:*,q2,k100,h8,kv1,d32,t1",
                              "attention:*,q1,k1500,h4,kv1,d64,t2"})) {
    AttentionRun run(c);
    for (int64_t group = 0; group < c.num_groups(); ++group) {
      for (int64_t head = 0; head < c.heads_per_group(); ++head) run.v.set({0, 70, group, head, 5}, INFINITY);
    }
    run.forward();
    for (int64_t group = 0; group < c.num_groups(); ++group) {
      for (int64_t head = 0; head < c.heads_per_group(); ++head) {
        for (int64_t d = 0; d < c.dim_v(); ++d) {
          const double got = run.out.get({0, 0, group, head, d});
          EXPECT_EQ(std::isfinite(got), d != 5) << to_text(c) << " dim " << d << " is " << got;
        }
      }
    }
  }
}

}  // namespace xformers::testing
