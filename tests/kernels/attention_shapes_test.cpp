// Sizes: empty, one, odd, every class of head_dim, head_dim_v of its own.
#include "tests/kernels/attention_check.h"

namespace xformers::testing {

INSTANTIATE_TEST_SUITE_P(Empty, AttentionCases,
                         cases({"attention:*,b2,q0,k9,h3,d8", "attention:*,b2,q9,k0,h3,d8",
                                "attention:*,b2,q0,k0,h3,d8", "attention:fp32,b0,q5,k6,h2,d8",
                                "attention:bf16,b0,q5,k6,h2,d8", "attention:fp32,b1,q5,k6,h0,d8",
                                "attention:fp32,q4,k0,h2,d8,causal_br,dlse", "attention:fp32,q4,k0,h2,d8,bias",
                                "attention:fp32,q0,k5,h2,d8,bias", "attention:bf16,q70,k0,h2,d64,dv80"}),
                         test_name);

INSTANTIATE_TEST_SUITE_P(One, AttentionCases,
                         cases({"attention:*,b1,q1,k1,h1,d1", "attention:*,b3,q1,k1,h2,d64",
                                "attention:*,q1,k77,h2,d64", "attention:*,q77,k1,h2,d64",
                                "attention:*,q1,k300,h4,kv1,d128", "attention:*,q1,k300,h4,d40,causal_br",
                                "attention:*,q1,k9,h2,d16,causal"}),
                         test_name);

INSTANTIATE_TEST_SUITE_P(Odd, AttentionCases,
                         cases({"attention:*,b2,q127,k129,h3,d63,dlse", "attention:*,q33,k31,h2,d17,dv19",
                                "attention:*,q65,k257,h1,d64,causal_br", "attention:*,q255,k63,h1,d33",
                                "attention:fp32,b2,q301,k517,h2,d64", "attention:bf16,b2,q301,k517,h2,d64",
                                "attention:fp16,b2,q301,k517,h2,d64"}),
                         test_name);

namespace {
std::vector<std::string> head_dims() {
  std::vector<std::string> texts;
  for (int d : {1, 3, 8, 16, 40, 64, 72, 80, 96, 128, 160, 256, 257, 512, 1024}) {
    texts.push_back("attention:*,q37,k50,h2,d" + std::to_string(d));
  }
  return texts;
}
}  // namespace
INSTANTIATE_TEST_SUITE_P(HeadDim, AttentionCases, cases(head_dims()), test_name);

INSTANTIATE_TEST_SUITE_P(HeadDimV, AttentionCases,
                         cases({"attention:*,q37,k50,h2,d64,dv32", "attention:*,q37,k50,h2,d32,dv128",
                                "attention:*,q37,k50,h2,d8,dv1", "attention:*,q37,k50,h2,d1,dv8",
                                "attention:bf16,q37,k50,h2,d512,dv3", "attention:fp16,q37,k50,h2,d3,dv512",
                                "attention:fp32,q37,k50,h2,d192,dv128,causal", "attention:*,q1,k300,h4,kv1,d1024,dv576",
                                "attention:*,q130,k140,h1,d64,dv1024"}),
                         test_name);

// Tiles of several steps for wide heads, with everything that is added to a score, and rows past a tile's end.
INSTANTIATE_TEST_SUITE_P(
    Wide, AttentionCases,
    cases({"attention:bf16,q200,k328,h2,d256,causal_br", "attention:fp16,q200,k328,h2,d256,causal_br",
           "attention:bf16,q150,k200,h2,d256,bias", "attention:fp16,q150,k200,h2,d192,bias,p0.3",
           "attention:bf16,b2,q129,k200,h2,d256,p0.5", "attention:bf16,q140,k264,h4,kv2,d192,band50_20",
           "attention:fp16,q150+1+70,k200+90+70,h2,d256", "attention:bf16,q300,k300,h1,d256,band40_0",
           "attention:bf16,q300,k304,h1,d128,band70_0,bias", "attention:bf16,q300,k300,h4,kv1,d128,p0.2"}),
    test_name);

INSTANTIATE_TEST_SUITE_P(Scale, AttentionCases,
                         cases({"attention:*,q40,k41,h2,d32,scale1", "attention:*,q40,k41,h2,d32,scale0.01",
                                "attention:*,q40,k41,h2,d32,scale0", "attention:*,q40,k41,h2,d32,scale-0.2",
                                // Scores of a few hundred: one key takes it all, and exp must not overflow.
                                "attention:*,q40,k141,h2,d64,scale1,amp30",
                                "attention:*,q40,k141,h2,d64,amp30,causal_br"}),
                         test_name);

// The causal and the full half of a tile, many heads, several batches at once.
INSTANTIATE_TEST_SUITE_P(Many, AttentionCases,
                         cases({"attention:fp32,b3,q70,k70,h5,d24,causal", "attention:bf16,b3,q70,k70,h5,d24,causal",
                                "attention:fp16,b1,q20,k20,h300,d8", "attention:fp32,b70,q3,k4,h2,d8"}),
                         test_name);

}  // namespace xformers::testing
