// Hopper's forward kernels: tiles that end in every place, head dims between those it is built for, what it reads of
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

constexpr const char *kPlain = "fwd_sm90", *kScored = "fwd_sm90_scored", *kBlocked = "fwd_sm90_blocked";

// With one of `others` each.
std::vector<std::string> edges(const std::vector<int>& keys, const std::vector<std::string>& others) {
  std::vector<std::string> texts;
  const std::vector<int> queries = {1, 63, 64, 65, 127, 128, 129, 191, 192, 193, 321};
  const std::vector<std::string> dims = {"d64",  "d96", "d128", "d192", "d192,dv128",
                                         "d256", "d72", "d80",  "d160", "d200,dv120"},
                                 bands = {"", ",causal", ",causal_br", ",band40_0", ",band10_200"};
  size_t i = 0;
  for (int q : queries) {
    for (int k : keys) {
      texts.push_back(std::string("attention:") + (i % 2 ? "fp16" : "bf16") + ",b2,q" + std::to_string(q) + ",k" +
                      std::to_string(k) + ",h" + (i % 3 ? "2" : "6,kv2") + "," + dims[i % dims.size()] +
                      bands[(i / 3) % bands.size()] + (i % 7 == 0 ? ",wide" : "") + others[i % others.size()]);
      ++i;
    }
  }
  return texts;
}

// It takes all of these, where there are its GPU and its code.
void expect_reference(const AttentionCase& c, const char* kernel, bool gradients = true) {
  AttentionRun run(c);
  if (const auto reasons = cuda::why_not_forward(kernel, run.forward_params()); !reasons.empty()) {
    ASSERT_TRUE(reasons[0].find("compute capability") != std::string::npos ||
                reasons[0].find("90a") != std::string::npos)
        << reasons[0];
    GTEST_SKIP() << reasons[0];
  }
  const ForcedKernel forced(kernel);
  gradients ? run.run() : run.forward();
  EXPECT_EQ(cuda::last_forward_kernel(), kernel);
  EXPECT_TRUE(matches_reference(run, gradients));
}

class HopperForward : public ::testing::TestWithParam<AttentionCase> {};
TEST_P(HopperForward, MatchesTheReference) { expect_reference(GetParam(), kPlain); }
class HopperScored : public ::testing::TestWithParam<AttentionCase> {};
TEST_P(HopperScored, MatchesTheReference) { expect_reference(GetParam(), kScored); }
class HopperBlocked : public ::testing::TestWithParam<AttentionCase> {};
TEST_P(HopperBlocked, MatchesTheReference) { expect_reference(GetParam(), kBlocked, false); }
// Out and lse alone: under such scales the gradients, which another kernel computes, are sums of numbers that fp16
// barely holds (dk of 1e-6), and say nothing about maxima.
class HopperScoredForward : public HopperScored {};
TEST_P(HopperScoredForward, MatchesTheReference) { expect_reference(GetParam(), kScored, false); }

INSTANTIATE_TEST_SUITE_P(Edges, HopperForward,
                         cases(edges({0, 1, 79, 80, 81, 111, 113, 127, 129, 159, 161, 400}, {""})), test_name);
// Everything that may happen to a score, by itself and with the others: 13 of them meet ten head dims and five bands.
// (Rows of a bias begin at units of 16 bytes.)
INSTANTIATE_TEST_SUITE_P(Edges, HopperScored,
                         cases(edges({8, 64, 80, 96, 120, 128, 136, 160, 200, 400},
                                     {",bias", ",p0.2", ",bias,p0.1", ",softcap5", ",alibi",
                                      ",bias,softcap20,alibi,sinks,p0.3", ",bias_blocks,sinks", ",scale-0.2,p0.5",
                                      ",bias_prefix30", ",bias@heads", ",bias@rows", ",scale-0.1", ""})),
                         test_name);
// Blocks that are whole tiles and steps, that share them, with bits, with layouts of their own or of all heads; rows
// and whole tiles that see nothing.
INSTANTIATE_TEST_SUITE_P(Edges, HopperBlocked,
                         cases(edges({1, 63, 64, 65, 127, 128, 129, 200, 400, 901},
                                     {",blocks128x128_50", ",blocks64x64_30", ",blocks16x16_15@one", ",blocks32x32_25",
                                      ",blocks48x80_50@bits", ",blocks128x256_40@bits", ",blocks16x64_30@groups",
                                      ",blocks256x128_60@one,sinks", ",blocks64x16_0", ",blocks1024x16_40@bits",
                                      ",blocks16x1024_50"})),
                         test_name);
INSTANTIATE_TEST_SUITE_P(Growing, HopperBlocked,
                         cases({
                             "attention:bf16,b1,q200,k1500,h2,d128,scale3,blocks128x128_60",
                             "attention:fp16,b1,q300,k1500,h2,d128,scale3,causal_br,blocks64x64_50",
                             "attention:bf16,b1,q130,k900,h2,d96,scale2,blocks16x32_40@bits",
                             "attention:fp16,b2,q900,k2100,h3,d128,blocks64x64_10",
                             "attention:bf16,b2,q900,k2100,h3,d64,causal,blocks32x32_20",
                             "attention:bf16,b2,q900,k2100,h4,kv2,d256,blocks128x128_20",
                         }),
                         test_name);
INSTANTIATE_TEST_SUITE_P(Growing, HopperScored, cases({"attention:bf16,b1,q130,k900,h2,d96,scale2,softcap50"}),
                         test_name);
INSTANTIATE_TEST_SUITE_P(Growing, HopperScoredForward,
                         cases({
                             "attention:bf16,b1,q200,k1504,h2,d128,scale3,bias",
                             "attention:fp16,b1,q200,k1500,h2,d128,scale3,causal_br,p0.1",
                             "attention:fp16,b2,q130,k904,h2,d192,dv128,alibi,bias",
                             "attention:bf16,b1,q200,k904,h2,d256,scale4,bias,p0.2",
                         }),
                         test_name);
INSTANTIATE_TEST_SUITE_P(Packed, HopperScored,
                         cases({
                             "attention:bf16,q1+130+0+64+300+7,k3+130+9+0+301+502,h2,d128,bias",
                             "attention:fp16,q1+130+0+64+300+7,k3+130+9+0+301+502,h6,kv2,d64,causal_br,bias@seqs",
                             "attention:bf16,q193+1+0+65,k161+902+3+64,h2,d256,band100_0,bias@heads,p0.2",
                             "attention:fp16,q40+40+40+40+40,k7+113+80+0+250,h2,d192,causal,alibi@seqs,sinks@seqs",
                             "attention:bf16,q300+1+65,k161+90+302,h2,d96,p0.3,bias@rows",
                             "attention:fp16,q300+1+65,k400+90+300,used166+90+9,h2,d128,p0.3,softcap4,bias",
                         }),
                         test_name);
// Pages in any order; rows that no sequence uses hold NaN.
INSTANTIATE_TEST_SUITE_P(Pages, HopperForward,
                         cases({
                             "attention:bf16,q70+3+200,used200+0+131,h2,d64,causal_br,page8",
                             "attention:fp16,q70+3+200+1,used200+5+131+900,h4,kv2,d128,page16",
                             "attention:bf16,q65+129,used700+333,h2,d128,causal_br,page16@shared",
                             "attention:bf16,q130+1,used400+80,h4,kv4,d96,bhsd,page48",
                             "attention:fp16,q130+70,used400+280,h2,d192,page48",
                             "attention:bf16,q130+70,used1400+80,h2,d192,dv128,page64,band200_20_br",
                             "attention:fp16,q130+70,used1400+80,h2,d256,page256",
                             "attention:bf16,q130+70,used400+81,h2,d200,dv120,page24,wide",
                             "attention:bf16,q130+70,used400+81,h2,d72,sinks,page1024",
                         }),
                         test_name);
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
  const auto reasons = [](const char* text, const char* kernel = kPlain) {
    const AttentionRun run(parse_attention_case(text));
    std::string all;
    for (const std::string& each : cuda::why_not_forward(kernel, run.forward_params())) all += each + "; ";
    return all;
  };
  EXPECT_NE(reasons("attention:fp32,q4,k4,d64").find("dtype is fp32"), std::string::npos);
  EXPECT_NE(reasons("attention:bf16,q4,k4,d264").find("expected at most 256"), std::string::npos);
  EXPECT_NE(reasons("attention:bf16,q4,k4,d36").find("units of 16 bytes"), std::string::npos);
  EXPECT_NE(reasons("attention:bf16,q40,k40,d64,bias").find("bias"), std::string::npos);
  EXPECT_NE(reasons("attention:bf16,q40,k40,d64,p0.1").find("dropout"), std::string::npos);
  EXPECT_NE(reasons("attention:bf16,q40,k40,d64,scale-0.2").find("not positive"), std::string::npos);
  EXPECT_NE(reasons("attention:bf16,q40,k400,d64,splits3").find("keys in parts"), std::string::npos);
  EXPECT_NE(reasons("attention:bf16,q80+9,used30+50,d64,page12").find("page_size is 12"), std::string::npos);
  EXPECT_NE(reasons("attention:bf16,q80+9,from3+0,used30+50,d64,page16").find("inside of a page"), std::string::npos);
  EXPECT_NE(reasons("attention:bf16,b1,q64,k64,d64,blocks16x16_50").find("block mask"), std::string::npos);
  EXPECT_NE(reasons("attention:bf16,q80+9,used30+50,d64,page16", kScored).find("paged keys"), std::string::npos);
  for (const char* memory : {"odd", "kstride", "cols"}) {
    const std::string text = std::string("attention:bf16,q40,k40,d64,bias@") + memory;
    EXPECT_NE(reasons(text.c_str(), kScored).find("rows of the bias are not in units"), std::string::npos) << memory;
  }
}

}  // namespace
}  // namespace xformers::testing
