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

constexpr const char *kPlain = "bwd_sm90", *kScored = "bwd_sm90_scored";

// With one of `others` each.
std::vector<std::string> edges(const std::vector<int>& keys, const std::vector<std::string>& others) {
  std::vector<std::string> texts;
  const std::vector<int> queries = {1, 63, 64, 65, 127, 128, 129, 321};
  const std::vector<std::string> dims = {"d64",  "d96",  "d128",       "d192,dv128", "d192", "d256", "d72", "d80",
                                         "d160", "d200", "d200,dv120", "d104,dv200", "d40",  "d136", "d248"},
                                 bands = {"", ",causal", ",causal_br", ",band40_0", ",band10_200"};
  size_t i = 0;
  for (int q : queries) {
    for (int k : keys) {
      texts.push_back(std::string("attention:") + (i % 2 ? "fp16" : "bf16") + ",b2,q" + std::to_string(q) + ",k" +
                      std::to_string(k) + ",h" + (i % 3 ? "2" : "6,kv2") + "," + dims[i % dims.size()] +
                      bands[(i / 3) % bands.size()] + (i % 4 == 0 ? ",dlse" : "") + others[i % others.size()]);
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

// It takes all of these, where there are its GPU and its code.
void expect_reference(const AttentionCase& c, const char* kernel) {
  AttentionRun run(c);
  run.forward();
  if (const auto reasons = cuda::why_not_backward(kernel, run.backward_params()); !reasons.empty()) {
    ASSERT_TRUE(reasons[0].find("compute capability") != std::string::npos ||
                reasons[0].find("90a") != std::string::npos)
        << reasons[0];
    GTEST_SKIP() << reasons[0];
  }
  const ForcedKernel forced(kernel);
  run.backward();
  EXPECT_EQ(cuda::last_backward_kernel(), kernel);
  EXPECT_TRUE(matches_reference(run));
  if (c.threads != 1) return;
  const std::vector<unsigned char> expected = run.output_bytes();
  for (int repeat = 0; repeat < 3; ++repeat) {
    run.backward();
    ASSERT_EQ(run.output_bytes(), expected) << "repeat " << repeat;
  }
}

class HopperBackward : public ::testing::TestWithParam<AttentionCase> {};
TEST_P(HopperBackward, MatchesTheReference) { expect_reference(GetParam(), kPlain); }
class HopperBackwardScored : public ::testing::TestWithParam<AttentionCase> {};
TEST_P(HopperBackwardScored, MatchesTheReference) { expect_reference(GetParam(), kScored); }

INSTANTIATE_TEST_SUITE_P(Edges, HopperBackward, cases(edges({0, 1, 63, 65, 127, 128, 129, 400}, {""})), test_name);
// Everything that may happen to a score, by itself and with the others. (Rows of a bias begin at units of 16 bytes.)
INSTANTIATE_TEST_SUITE_P(Edges, HopperBackwardScored,
                         cases(edges({8, 64, 72, 120, 128, 136, 264, 400},
                                     {",bias", ",p0.2", ",bias,p0.1", ",alibi", ",bias,alibi,sinks,p0.3",
                                      ",bias_blocks,sinks", ",scale-0.2,p0.5", ",bias_prefix30", ",bias@heads",
                                      ",bias@rows", ",scale-0.1,alibi", ",p1", ""})),
                         test_name);
INSTANTIATE_TEST_SUITE_P(Dims, HopperBackwardScored,
                         cases(of_each_dim({"q500,k304,h3,bias", "q300,k500,h6,kv2,causal_br,dlse,p0.2",
                                            "q260,k392,h2,t1,bias,p0.1", "b2,q200,k600,h2,bias@heads,alibi,causal",
                                            "q200,k400,h2,bias@rows,p0.3,band100_30"})),
                         test_name);
INSTANTIATE_TEST_SUITE_P(Many, HopperBackwardScored,
                         cases(of_each_dim({"b2,q130,k272,h60,bias,p0.1", "b1,q200,k264,h90,causal,alibi,p0.2"})),
                         test_name);
INSTANTIATE_TEST_SUITE_P(Growing, HopperBackwardScored,
                         cases({
                             "attention:bf16,b1,q200,k1504,h2,d128,scale3,bias",
                             "attention:bf16,b1,q200,k1500,h2,d64,scale3,causal_br,p0.1",
                             "attention:bf16,b1,q200,k904,h2,d256,scale4,bias,p0.2",
                         }),
                         test_name);
INSTANTIATE_TEST_SUITE_P(Packed, HopperBackwardScored,
                         cases({
                             "attention:bf16,q1+130+0+64+300+7,k3+130+9+0+301+502,h2,d128,bias",
                             "attention:fp16,q1+130+0+64+300+7,k3+130+9+0+301+502,h6,kv2,d64,causal_br,bias@seqs",
                             "attention:bf16,q193+1+0+65,k161+902+3+64,h2,d256,band100_0,bias@heads,p0.2",
                             "attention:fp16,q40+40+40+40+40,k7+113+80+0+250,h2,d192,causal,alibi@seqs,sinks@seqs",
                             "attention:bf16,q300+1+65,k161+90+302,h2,d96,p0.3,bias@rows",
                             "attention:fp16,q300+1+65,k161+90+302,h2,d192,dv128,p0.3,bias,alibi",
                         }),
                         test_name);
INSTANTIATE_TEST_SUITE_P(Dims, HopperBackward,
                         cases(of_each_dim({"q500,k300,h3", "q300,k500,h6,kv2,causal_br,dlse", "q260,k390,h2,t1"})),
                         test_name);
// More tiles than blocks that stay, and more heads than are worked on at once.
INSTANTIATE_TEST_SUITE_P(Many, HopperBackward, cases(of_each_dim({"b2,q130,k270,h60", "b1,q200,k260,h90,causal"})),
                         test_name);
// Sums in an order, under masks and of packed sequences: more tiles than blocks that stay; many that wait for each
// other.
INSTANTIATE_TEST_SUITE_P(Ordered, HopperBackward,
                         cases(of_each_dim({"b2,q130,k400,h50,causal_br,t1", "q500,k700,h6,band300_100_br,t1",
                                            "q193+1+0+165+40,k161+500+3+264+7,h4,causal,t1"})),
                         test_name);
INSTANTIATE_TEST_SUITE_P(Ordered, HopperBackwardScored,
                         cases({
                             "attention:bf16,q500,k704,h6,d64,causal_br,t1,bias,p0.1",
                             "attention:fp16,q500,k704,h6,d128,causal,t1,alibi",
                             "attention:bf16,b2,q130,k400,h50,d256,causal_br,t1,p0.2",
                         }),
                         test_name);
INSTANTIATE_TEST_SUITE_P(Packed, HopperBackward,
                         cases(of_each_dim({"q1+130+0+64+300+7,k3+130+9+0+301+500,h2",
                                            "q193+1+0+65,k161+900+3+64,h6,kv2,causal_br",
                                            "q40+40+40,k7+113+80,h2,band50_9"})),
                         test_name);

// One call per reason.
TEST(HopperBackward, SaysWhatItDoesNotTake) {
  const auto reasons = [](const char* text, bool deterministic = false, const char* kernel = kPlain) {
    const AttentionRun run(parse_attention_case(text));
    AttentionBwdParams params = run.backward_params();
    params.deterministic = deterministic;
    std::string all;
    for (const std::string& each : cuda::why_not_backward(kernel, params)) all += each + "; ";
    return all;
  };
  EXPECT_NE(reasons("attention:fp32,q4,k4,d64").find("dtype is fp32"), std::string::npos);
  EXPECT_NE(reasons("attention:bf16,q4,k4,d264").find("expected at most 256"), std::string::npos);
  EXPECT_NE(reasons("attention:bf16,q4,k4,d36").find("units of 16 bytes"), std::string::npos);
  EXPECT_NE(reasons("attention:bf16,q40,k40,d64,bias").find("bias or dropout"), std::string::npos);
  EXPECT_NE(reasons("attention:bf16,q40,k40,d64,p0.1").find("bias or dropout"), std::string::npos);
  EXPECT_NE(reasons("attention:bf16,q40,k40,d64,softcap3").find("softcap"), std::string::npos);
  EXPECT_NE(reasons("attention:bf16,q40,k40,d64,alibi").find("alibi"), std::string::npos);
  EXPECT_NE(reasons("attention:bf16,q40,k40,h2,d64,blocks32x32_50").find("block mask"), std::string::npos);
  const auto scored = [&](const char* text, bool deterministic = false) {
    return reasons(text, deterministic, kScored);
  };
  EXPECT_NE(scored("attention:fp32,q4,k4,d64").find("dtype is fp32"), std::string::npos);
  EXPECT_NE(scored("attention:bf16,q40,k40,d64,softcap3").find("softcap"), std::string::npos);
  EXPECT_NE(scored("attention:bf16,q40,k39,d64,bias").find("rows of the bias"), std::string::npos);
  EXPECT_NE(scored("attention:bf16,q40,k40,h2,d64,blocks32x32_50").find("block mask"), std::string::npos);
  EXPECT_NE(scored("attention:bf16,q40+40,k40+40,h2,d64,bias@heads", true).find("fixed order"), std::string::npos);
  EXPECT_EQ(scored("attention:bf16,q40,k40,d64,bias,p0.1").find("bias"), std::string::npos);
}

}  // namespace
}  // namespace xformers::testing
