// Tensor biases and their gradients: any stride, any alignment, -inf in prefixes, blocks and whole rows.
#include "tests/kernels/attention_check.h"

namespace xformers::testing {

INSTANTIATE_TEST_SUITE_P(Bias, AttentionCases,
                         cases({"attention:*,b2,q70,k83,h2,d32,bias", "attention:*,b2,q33,k130,h2,d64,bias,causal_br",
                                "attention:*,q33,k64,h4,g2,kv2,d16,bias", "attention:*,q1,k200,h4,kv1,d64,bias",
                                "attention:*,q50,k60,h2,d32,bias,p0.3,dlse",
                                "attention:fp32,q90,k100,h1,d32,bias,band9_4_br"}),
                         test_name);

namespace {
// The -inf ends just before, at and behind the tile widths that kernels like.
std::vector<std::string> prefixes() {
  std::vector<std::string> texts;
  for (int n : {1, 31, 32, 64, 65, 127}) texts.push_back("attention:*,q35,k200,h1,d32,bias_prefix" + std::to_string(n));
  texts.push_back("attention:*,q35,k200,h1,d32,bias_prefix200");  // nothing is left
  texts.push_back("attention:*,q35,k200,h1,d32,bias_prefix199,causal_br");
  texts.push_back("attention:*,q1,k700,h4,kv1,d64,bias_prefix600");
  return texts;
}
}  // namespace
INSTANTIATE_TEST_SUITE_P(Prefix, AttentionCases, cases(prefixes()), test_name);

INSTANTIATE_TEST_SUITE_P(Blocks, AttentionCases,
                         cases({"attention:*,b2,q67,k300,h2,d32,bias_blocks",
                                "attention:*,q67,k300,h1,d64,bias_blocks,causal_br",
                                "attention:*,q3,k900,h4,kv2,d64,bias_blocks,dlse"}),
                         test_name);

INSTANTIATE_TEST_SUITE_P(
    Strides, AttentionCases,
    cases({"attention:*,b2,q41,k75,h2,d32,bias@odd", "attention:*,b2,q41,k75,h2,d32,bias@kstride",
           "attention:*,b2,q41,k75,h2,d32,bias@heads", "attention:*,b2,q41,k75,h2,d32,bias@rows",
           "attention:*,b2,q41,k75,h2,d32,bias@cols", "attention:*,q41,k75,h2,d32,bias_prefix33@kstride,causal",
           "attention:*,q41,k75,h2,d32,bias_blocks@odd", "attention:*,q1,k600,h8,kv2,d64,bias_prefix65@heads"}),
    test_name);

}  // namespace xformers::testing
