// Where tensors lie in memory: strides, padding, packed projections, many keys.
#include <cmath>

#include "tests/kernels/attention_check.h"

namespace xformers::testing {

INSTANTIATE_TEST_SUITE_P(
    Strided, AttentionCases,
    cases({"attention:*,b2,q70,k90,h3,d40,bhsd", "attention:*,b2,q70,k90,h3,d40,dv24,padded,dlse",
           "attention:*,b2,q70,k70,h3,d32,qkv,causal", "attention:*,b2,q70,k90,h4,kv2,d40,padded",
           "attention:bf16,b2,q130,k190,h3,d64,padded", "attention:bf16,b2,q1,k190,h4,kv2,d64,bhsd",
           "attention:fp16,b2,q130,k190,h3,d64,bhsd,causal_br", "attention:fp32,q3+0+40,k5+9+40,h3,d40,padded"}),
    test_name);

INSTANTIATE_TEST_SUITE_P(ManyKeys, AttentionCases,
                         cases({"attention:fp32,q3,k65537,h1,d16", "attention:bf16,q3,k65600,h1,d16,causal_br",
                                "attention:fp16,q1,k70001,h1,d16", "attention:fp32,q65537,k3,h1,d16",
                                "attention:bf16,q65600,k2,h1,d16,dlse", "attention:fp32,q20,k65700,h1,d8,band64_0_br"}),
                         test_name);

// NaN next to every row and after every tensor reaches no output: `padded` has it between the rows of each tensor.
TEST(Padding, NaNDoesNotLeak) {
  for (const AttentionCase& c : parse_attention_cases({"attention:*,b2,q37,k53,h3,d13,dv7,padded,bias@odd,dlse",
                                                       "attention:*,b2,q130,k140,h2,d64,padded,causal"})) {
    AttentionRun run(c);
    run.run();
    const reference::AttentionResult result = run.result();
    for (const auto* values : {&result.out, &result.lse, &result.dq, &result.dk, &result.dv, &result.dbias}) {
      for (double x : *values) ASSERT_TRUE(std::isfinite(x)) << to_text(c);
    }
  }
}

}  // namespace xformers::testing
