// Few heads and long sequences: the tensor-core kernels part the keys, by themselves or as they are told, with parts
// that see nothing among them.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/kernels/attention_check.h"
#include "tests/kernels/forced_kernel.h"
#include "xformers/kernels/cuda/attention/attention_cuda.h"

namespace xformers::testing {
namespace {

const std::vector<std::string> kPlain = {
    "b1,q300,k900,h1,d64,causal_br",
    "b1,q400,k700,h2,d128,causal",
    "b1,q260,k600,h1,d256,causal_br,dlse",
    "b1,q390,k900,h1,d128,band400_200",
    "b1,q200,k700,h2,d40,dv24",
    "b2,q150,k515,h4,kv2,d96,wide",
    "q9+280+0+130,k9+2480+20+900,h2,d64,causal_br",
    "b1,q500,k400,h1,d192,causal",
};
const std::vector<std::string> kScored = {
    "b1,q300,k904,h1,d64,bias,causal_br", "b1,q280,k600,h2,d128,p0.1,dlse",         "b1,q260,k520,h1,d256,bias,p0.2",
    "b2,q140,k800,h1,d64,bias_prefix600",  // the first parts see nothing
    "b1,q300,k500,h2,kv1,d128,scale-0.2", "q70+130,k300+640,h2,d64,p0.3,causal_br",
};
const std::vector<std::string> kGeneral = {
    "b1,q300,k900,h1,d36,causal_br",
    "b1,q1200,k1200,h1,d36,band300_0",
    "b1,q140,k600,h2,d64,bias@odd",
    "q70+130,used300+640,page16,h2,kv1,d64,causal_br",
};

std::vector<std::string> in_both_types(const std::vector<std::string>& calls) {
  std::vector<std::string> texts;
  for (const std::string& call : calls) {
    for (const char* type : {"bf16,", "fp16,"}) texts.push_back(std::string("attention:") + type + call);
  }
  return texts;
}
std::vector<std::string> with_splits(const std::vector<std::string>& calls) {
  std::vector<std::string> texts;
  for (size_t i = 0; i < calls.size(); ++i) {
    texts.push_back("attention:bf16," + calls[i] + ",splits" + std::to_string(2 + i % 3));
    texts.push_back("attention:fp16," + calls[i] + ",splits" + std::to_string(40 - i));  // more parts than steps
  }
  return texts;
}

class Splits : public ::testing::TestWithParam<AttentionCase> {
 protected:
  // In parts, by the kernel of this name.
  static void check(const char* kernel) {
    AttentionRun run(GetParam());
    const ForcedKernel forced(kernel);
    EXPECT_GT(cuda::choose_forward(run.forward_params()).workspace, 0u);
    run.run();
    EXPECT_EQ(cuda::last_forward_kernel(), kernel);
    EXPECT_TRUE(matches_reference(run));
  }
};
class PlainSplits : public Splits {};
TEST_P(PlainSplits, MatchTheReference) { check("fwd_sm80"); }
INSTANTIATE_TEST_SUITE_P(Chosen, PlainSplits, cases(in_both_types(kPlain)), test_name);
INSTANTIATE_TEST_SUITE_P(Given, PlainSplits, cases(with_splits(kPlain)), test_name);

class ScoredSplits : public Splits {};
TEST_P(ScoredSplits, MatchTheReference) { check("fwd_sm80_scored"); }
INSTANTIATE_TEST_SUITE_P(Chosen, ScoredSplits, cases(in_both_types(kScored)), test_name);
INSTANTIATE_TEST_SUITE_P(Given, ScoredSplits, cases(with_splits(kScored)), test_name);

class GeneralSplits : public Splits {};
TEST_P(GeneralSplits, MatchTheReference) { check("fwd_sm80_general"); }
INSTANTIATE_TEST_SUITE_P(Chosen, GeneralSplits, cases(in_both_types(kGeneral)), test_name);
INSTANTIATE_TEST_SUITE_P(Given, GeneralSplits, cases(with_splits(kGeneral)), test_name);

// Where tiles fill the GPU already, nothing is split; a given number is taken as it is.
TEST(SplitChoice, FollowsTheRowTiles) {
  const auto workspace = [](const char* text) {
    return cuda::choose_forward(AttentionRun(parse_attention_case(text)).forward_params()).workspace;
  };
  EXPECT_EQ(workspace("attention:bf16,b64,q128,k256,h16,d32"), 0u);
  EXPECT_EQ(workspace("attention:bf16,b1,q200,k1000,h1,d64,splits1"), 0u);
  EXPECT_EQ(workspace("attention:bf16,b1,q200,k100,h1,d64"), 0u);  // too few keys
  EXPECT_EQ(workspace("attention:bf16,b1,q200,k1000,h1,d64,splits3"), 3u * 200 * (64 + 2) * 4);
}

}  // namespace
}  // namespace xformers::testing
