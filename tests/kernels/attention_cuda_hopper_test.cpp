// Hopper's forward kernel: tiles that end in every place, head dims between those it is built for, what it reads of
// rows that are nobody's or a neighbour's, and what it leaves to the kernels behind it.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "tests/kernels/attention_check.h"
#include "tests/kernels/forced_kernel.h"
#include "xformers/kernels/cuda/attention/attention_cuda.h"

namespace xformers::testing {
namespace {

constexpr const char* kKernel = "fwd_sm90";

std::vector<std::string> edges() {
  std::vector<std::string> texts;
  const std::vector<int> queries = {1, 63, 64, 65, 127, 128, 129, 191, 192, 193, 321},
                         keys = {0, 1, 79, 80, 81, 111, 113, 127, 129, 159, 161, 400};
  const std::vector<std::string> dims = {"d64",  "d96", "d128", "d192", "d192,dv128",
                                         "d256", "d72", "d80",  "d160", "d200,dv120"},
                                 bands = {"", ",causal", ",causal_br", ",band40_0", ",band10_200"};
  size_t i = 0;
  for (int q : queries) {
    for (int k : keys) {
      texts.push_back(std::string("attention:") + (i % 2 ? "fp16" : "bf16") + ",b2,q" + std::to_string(q) + ",k" +
                      std::to_string(k) + ",h" + (i % 3 ? "2" : "6,kv2") + "," + dims[i % dims.size()] +
                      bands[(i / 3) % bands.size()] + (i % 7 == 0 ? ",wide" : ""));
      ++i;
    }
  }
  return texts;
}

class HopperForward : public ::testing::TestWithParam<AttentionCase> {};
TEST_P(HopperForward, MatchesTheReference) {
  AttentionRun run(GetParam());
  if (const auto reasons = cuda::why_not_forward(kKernel, run.forward_params()); !reasons.empty()) {
    // It takes all of these, where there are its GPU and its code.
    ASSERT_TRUE(reasons[0].find("compute capability") != std::string::npos ||
                reasons[0].find("90a") != std::string::npos)
        << reasons[0];
    GTEST_SKIP() << reasons[0];
  }
  const ForcedKernel forced(kKernel);
  run.run();
  EXPECT_EQ(cuda::last_forward_kernel(), kKernel);
  EXPECT_TRUE(matches_reference(run));
}
INSTANTIATE_TEST_SUITE_P(Edges, HopperForward, cases(edges()), test_name);
// Maxima that later keys exceed by far, again and again.
INSTANTIATE_TEST_SUITE_P(Growing, HopperForward,
                         cases({
                             "attention:bf16,b1,q200,k1500,h2,d128,scale3",
                             "attention:fp16,b1,q200,k1500,h2,d128,scale3,causal_br",
                             "attention:bf16,b1,q130,k900,h2,d96,scale2",
                             "attention:fp16,b1,q130,k900,h2,d192,dv128,scale2",
                             "attention:bf16,b1,q200,k900,h2,d64,scale4",
                         }),
                         test_name);
INSTANTIATE_TEST_SUITE_P(Packed, HopperForward,
                         cases({
                             "attention:bf16,q1+130+0+64+300+7,k3+130+9+0+301+500,h2,d128",
                             "attention:fp16,q1+130+0+64+300+7,k3+130+9+0+301+500,h6,kv2,d64,causal_br",
                             "attention:bf16,q193+1+0+65,k161+900+3+64,h2,d256,band100_0",
                             "attention:fp16,q40+40+40+40+40,k7+113+80+0+250,h2,d192,causal",
                         }),
                         test_name);

// One call per reason.
TEST(HopperForward, SaysWhatItDoesNotTake) {
  const auto reasons = [](const char* text) {
    const AttentionRun run(parse_attention_case(text));
    std::string all;
    for (const std::string& each : cuda::why_not_forward(kKernel, run.forward_params())) all += each + "; ";
    return all;
  };
  EXPECT_NE(reasons("attention:fp32,q4,k4,d64").find("dtype is fp32"), std::string::npos);
  EXPECT_NE(reasons("attention:bf16,q4,k4,d264").find("expected at most 256"), std::string::npos);
  EXPECT_NE(reasons("attention:bf16,q4,k4,d36").find("units of 16 bytes"), std::string::npos);
  EXPECT_NE(reasons("attention:bf16,q40,k40,d64,bias").find("bias"), std::string::npos);
  EXPECT_NE(reasons("attention:bf16,q40,k40,d64,p0.1").find("dropout"), std::string::npos);
  EXPECT_NE(reasons("attention:bf16,q40,k40,d64,scale-0.2").find("not positive"), std::string::npos);
  EXPECT_NE(reasons("attention:bf16,q40,k400,d64,splits3").find("keys in parts"), std::string::npos);
}

}  // namespace
}  // namespace xformers::testing
