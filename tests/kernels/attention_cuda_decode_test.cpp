// The kernel for few rows: every layout, head dim and number of splits on it, and when it is the one that is chosen.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/kernels/attention_check.h"
#include "tests/kernels/forced_kernel.h"
#include "xformers/kernels/cuda/attention/attention_cuda.h"

namespace xformers::testing {
namespace {

std::vector<std::string> decode_cases() {
  const std::vector<std::string> calls = {
      "b2,q1,k777,h8,kv2",             // grouped heads: 4 rows
      "b1,q4,k300,h12,kv3,causal_br",  // queries x heads: 16 rows
      "b3,q16,k129,h2,band33_7_br",    // every head its own keys
      "b2,q1,k64,h16,kv1",
      "b1,q2,k5,h4,kv2,dlse",
      "q1+1+1,k300+5+129,h8,kv2",                         // packed
      "q3+0+1+2,k70+9+0+64,h4,kv1,causal_br",             // sequences without queries, without keys
      "q1+1+1,from200+3+190,k500,used300+40+100,h8,kv2",  // anywhere
      "q1+1+1,used300+5+129,h8,kv2,page1",                // pages of any size
      "q1+2+1,used300+5+129,h4,kv2,page3,causal_br",
      "q1+1,from63+1,used65+190,page64,h4,kv2",
      "q1+1+1+1,used256+256+100+31,page32@shared,h8,kv2",
      "b2,q1,k200,h4,kv2,bhsd",
      "b1,q3,k100,h4,kv1,wide",
      "b1,q1,k90,h2,scale-0.3",
      "b1,q1,k40,h2,band0_0",
      "b1,q0,k40,h2",
      "b1,q2,k0,h2"};
  const std::vector<std::string> widths = {"d64", "d128", "d256", "d8", "d40,dv24", "d72,dv200"};
  std::vector<std::string> texts;
  for (size_t i = 0; i < calls.size(); ++i) {
    for (const char* splits : {"", ",splits1", ",splits2", ",splits5", ",splits128"}) {
      for (const char* type : {"bf16", "fp16"}) {
        texts.push_back(std::string("attention:") + type + "," + calls[i] + "," + widths[i % widths.size()] + splits);
      }
    }
    texts.push_back("attention:bf16," + calls[i] + "," + widths[(i + 1) % 3]);
  }
  return texts;
}

class Decode : public ::testing::TestWithParam<AttentionCase> {};
TEST_P(Decode, MatchesTheReference) {
  AttentionRun run(GetParam());
  const ForcedKernel forced("fwd_decode");
  run.run();
  EXPECT_EQ(cuda::last_forward_kernel(), "fwd_decode");
  EXPECT_TRUE(matches_reference(run));
}
INSTANTIATE_TEST_SUITE_P(Cuda, Decode, cases(decode_cases()), test_name);

TEST(DecodeChoice, FollowsRowsPerKey) {
  const auto chosen = [](const char* text) {
    AttentionRun run(parse_attention_case(text));
    run.forward();
    return std::string(cuda::last_forward_kernel());
  };
  for (const char* text :
       {"attention:bf16,b2,q1,k777,h8,kv2,d64", "attention:fp16,b1,q16,k40,h2,d128",
        "attention:bf16,q1+3,k5+60,h4,kv2,d8", "attention:bf16,q1+1,used100+31,page16,h8,kv2,d256"}) {
    EXPECT_EQ(chosen(text), "fwd_decode") << text;
  }
  for (const char* text :
       {"attention:bf16,b2,q17,k777,h2,d64", "attention:bf16,b1,q5,k77,h8,kv2,d64", "attention:bf16,q9+1,k64+60,h1,d64",
        "attention:bf16,b1,q1,k77,h2,d64,bias", "attention:bf16,b1,q1,k77,h2,d64,p0.1",
        "attention:bf16,b1,q1,k77,h2,d257", "attention:bf16,b1,q1,k77,h2,d20",
        "attention:bf16,b2,q1,k200,h4,kv2,d64,padded", "attention:fp32,b1,q1,k77,h2,d64"}) {
    EXPECT_NE(chosen(text), "fwd_decode") << text;
  }
}

}  // namespace
}  // namespace xformers::testing
