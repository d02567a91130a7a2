// Hopper's backward kernels: tiles that end in every place, head dims between those they are built for, heads that
// share keys, sums in an order, what they read of rows that are nobody's or a neighbour's.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/kernels/attention_check.h"
#include "tests/kernels/forced_kernel.h"
#include "xformers/kernels/cuda/attention/attention_cuda.h"

namespace xformers::testing {
namespace {

constexpr const char* kKernel = "bwd_sm90";

std::vector<std::string> edges() {
  std::vector<std::string> texts;
  const std::vector<int> queries = {1, 63, 64, 65, 127, 128, 129, 321}, keys = {0, 1, 63, 65, 127, 128, 129, 400};
  const std::vector<std::string> dims = {"d64",  "d96",  "d128",       "d192,dv128", "d192", "d256", "d72", "d80",
                                         "d160", "d200", "d200,dv120", "d104,dv200", "d40",  "d136", "d248"},
                                 bands = {"", ",causal", ",causal_br", ",band40_0", ",band10_200"};
  size_t i = 0;
  for (int q : queries) {
    for (int k : keys) {
      texts.push_back(std::string("attention:") + (i % 2 ? "fp16" : "bf16") + ",b2,q" + std::to_string(q) + ",k" +
                      std::to_string(k) + ",h" + (i % 3 ? "2" : "6,kv2") + "," + dims[i % dims.size()] +
                      bands[(i / 3) % bands.size()] + (i % 4 == 0 ? ",dlse" : ""));
      ++i;
    }
  }
  return texts;
}

// Of each pair of head dims, what the edges may miss: several tiles, many steps, a turn of heads.
std::vector<std::string> of_each_dim(const std::vector<std::string>& rests) {
  std::vector<std::string> texts;
  for (const char* dtype : {"bf16", "fp16"}) {
    for (const char* dims : {"d64", "d96", "d128", "d192,dv128", "d192", "d256", "d112,dv104"}) {
      for (const std::string& rest : rests)
        texts.push_back(std::string("attention:") + dtype + "," + dims + "," + rest);
    }
  }
  return texts;
}

class HopperBackward : public ::testing::TestWithParam<AttentionCase> {};
TEST_P(HopperBackward, MatchesTheReference) {
  AttentionRun run(GetParam());
  run.forward();
  if (const auto reasons = cuda::why_not_backward(kKernel, run.backward_params()); !reasons.empty()) {
    // It takes all of these, where there are its GPU and its code.
    ASSERT_TRUE(reasons[0].find("compute capability") != std::string::npos ||
                reasons[0].find("90a") != std::string::npos)
        << reasons[0];
    GTEST_SKIP() << reasons[0];
  }
  const ForcedKernel forced(kKernel);
  run.backward();
  EXPECT_EQ(cuda::last_backward_kernel(), kKernel);
  EXPECT_TRUE(matches_reference(run));
  if (GetParam().threads != 1) return;
  const std::vector<unsigned char> expected = run.output_bytes();
  for (int repeat = 0; repeat < 3; ++repeat) {
    run.backward();
    ASSERT_EQ(run.output_bytes(), expected) << "repeat " << repeat;
  }
}
INSTANTIATE_TEST_SUITE_P(Edges, HopperBackward, cases(edges()), test_name);
INSTANTIATE_TEST_SUITE_P(Dims, HopperBackward,
                         cases(of_each_dim({"q500,k300,h3", "q300,k500,h6,kv2,causal_br,dlse", "q260,k390,h2,t1"})),
                         test_name);
// More tiles than blocks that stay, and more heads than are worked on at once.
INSTANTIATE_TEST_SUITE_P(Many, HopperBackward, cases(of_each_dim({"b2,q130,k270,h60", "b1,q200,k260,h90,causal"})),
                         test_name);
INSTANTIATE_TEST_SUITE_P(Packed, HopperBackward,
                         cases(of_each_dim({"q1+130+0+64+300+7,k3+130+9+0+301+500,h2",
                                            "q193+1+0+65,k161+900+3+64,h6,kv2,causal_br",
                                            "q40+40+40,k7+113+80,h2,band50_9"})),
                         test_name);

// One call per reason.
TEST(HopperBackward, SaysWhatItDoesNotTake) {
  const auto reasons = [](const char* text, bool deterministic = false) {
    const AttentionRun run(parse_attention_case(text));
    AttentionBwdParams params = run.backward_params();
    params.deterministic = deterministic;
    std::string all;
    for (const std::string& each : cuda::why_not_backward(kKernel, params)) all += each + "; ";
    return all;
  };
  EXPECT_NE(reasons("attention:fp32,q4,k4,d64").find("dtype is fp32"), std::string::npos);
  EXPECT_NE(reasons("attention:bf16,q4,k4,d264").find("expected at most 256"), std::string::npos);
  EXPECT_NE(reasons("attention:bf16,q4,k4,d36").find("units of 16 bytes"), std::string::npos);
  EXPECT_NE(reasons("attention:bf16,q40,k40,d64,bias").find("bias or dropout"), std::string::npos);
  EXPECT_NE(reasons("attention:bf16,q40,k40,d64,p0.1").find("bias or dropout"), std::string::npos);
  EXPECT_NE(reasons("attention:bf16,q40,k40,d64,softcap3").find("softcap"), std::string::npos);
  EXPECT_NE(reasons("attention:bf16,q40,k40,d64,alibi").find("alibi"), std::string::npos);
  EXPECT_NE(reasons("attention:bf16,q40,k40,d64,causal", true).find("deterministic"), std::string::npos);
  EXPECT_NE(reasons("attention:bf16,q40,k40,h2,d64,blocks32x32_50").find("block mask"), std::string::npos);
}

}  // namespace
}  // namespace xformers::testing
