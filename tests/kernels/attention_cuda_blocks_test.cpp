// Block masks on the GPU: who takes them, the same bits where that is asked for, lists that end where tiles do not.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "tests/kernels/attention_backend.h"
#include "tests/kernels/attention_check.h"
#include "tests/kernels/forced_kernel.h"
#include "xformers/kernels/cuda/attention/attention_cuda.h"

namespace xformers::testing {
namespace {

const char* const kMasked = ",b2,q300,k400,h2,d128,blocks64x64_40";

bool takes_blocks(const AttentionRun& run, const char* kernel) {
  return cuda::why_not_forward(kernel, run.forward_params()).empty();
}

TEST(AttentionCudaBlocks, TensorCoresTakeThem) {
  for (const char* dtype : {"bf16", "fp16", "fp32"}) {
    AttentionRun run(parse_attention_case("attention:" + (dtype + std::string(kMasked))));
    run.run();
    const bool wide = std::string(dtype) == "fp32";
    EXPECT_EQ(last_forward_kernel(), wide ? "fwd_sm80_fp32" : "fwd_sm80_blocked");
    EXPECT_EQ(last_backward_kernel(), wide ? "bwd_sm80_fp32" : "bwd_sm80");
    EXPECT_TRUE(matches_reference(run));
  }
}

TEST(AttentionCudaBlocks, HopperTakesThoseThatAreWholeTiles) {
  for (const char* blocks : {"blocks128x128_50", "blocks256x128_50", "blocks128x64_50", "blocks64x128_50"}) {
    AttentionRun run(parse_attention_case(std::string("attention:bf16,b4,q1024,k512,h8,d128,") + blocks));
    if (!takes_blocks(run, "fwd_sm90_blocked")) GTEST_SKIP() << "needs compute capability 9.0";
    run.forward();
    const bool whole = std::string(blocks).find("64") == std::string::npos;
    EXPECT_EQ(last_forward_kernel(), whole ? "fwd_sm90_blocked" : "fwd_sm80_blocked") << blocks;
  }
}

TEST(AttentionCudaBlocks, OthersSayWhyNot) {
  const AttentionRun run(parse_attention_case("attention:bf16" + std::string(kMasked)));
  for (const char* kernel :
       {"fwd_decode", "fwd_sm90", "fwd_sm90_scored", "fwd_sm80", "fwd_sm80_scored", "fwd_sm80_modified"}) {
    const auto reasons = cuda::why_not_forward(kernel, run.forward_params());
    EXPECT_NE(std::find(reasons.begin(), reasons.end(), "a block mask"), reasons.end()) << kernel;
  }
  for (const char* kernel : {"bwd_sm90", "bwd_sm90_scored"}) {
    const auto reasons = cuda::why_not_backward(kernel, run.backward_params());
    EXPECT_NE(std::find(reasons.begin(), reasons.end(), "a block mask"), reasons.end()) << kernel;
  }
}

// t1: deterministic.
TEST(AttentionCudaBlocks, RepeatBitwise) {
  for (const char* text : {"attention:fp32,q400,k700,h3,d32,blocks16x32_20@bits,t1",
                           "attention:bf16,b2,q400,k700,h4,kv2,d64,blocks64x64_30,causal,t1"}) {
    AttentionRun first(parse_attention_case(text)), second(parse_attention_case(text));
    first.run(), second.run();
    EXPECT_EQ(first.output_bytes(), second.output_bytes()) << text;
  }
}

// Blocks that are all visible give the bits that no mask gives, where steps are the same.
TEST(AttentionCudaBlocks, AllOfThemAreNone) {
  const std::string problem = "attention:bf16,b2,q300,k400,h2,d128,causal";
  AttentionRun masked(parse_attention_case(problem + ",blocks64x64_100")), plain(parse_attention_case(problem));
  const auto forward = [](AttentionRun& run, const char* kernel) {
    const ForcedKernel forced(kernel);
    run.forward();
  };
  forward(masked, "fwd_sm80_blocked"), forward(plain, "fwd_sm80");
  EXPECT_EQ(masked.output_bytes(), plain.output_bytes());
  if (!takes_blocks(masked, "fwd_sm90_blocked")) return;
  AttentionRun whole(parse_attention_case(problem + ",blocks128x128_100"));
  forward(whole, "fwd_sm90_blocked"), forward(plain, "fwd_sm90");
  EXPECT_EQ(whole.output_bytes(), plain.output_bytes());
}

// Every one of the problems with one of the blocks after the other, in each of the dtypes.
std::vector<std::string> each(const std::vector<std::string>& problems, const std::vector<std::string>& blocks,
                              const std::vector<std::string>& dtypes) {
  std::vector<std::string> texts;
  for (size_t i = 0; i < problems.size(); ++i) {
    for (const std::string& dtype : dtypes) {
      texts.push_back("attention:" + dtype + "," + problems[i] + "," + blocks[texts.size() % blocks.size()]);
    }
  }
  return texts;
}
std::vector<std::string> all_of(const std::vector<std::string>& left, const std::vector<std::string>& right) {
  std::vector<std::string> both;
  for (const std::string& a : left)
    for (const std::string& b : right) both.push_back(a + "," + b);
  return both;
}

// Walks of one step, of none, of many; rows of packed heads that begin inside a square; every instance.
INSTANTIATE_TEST_SUITE_P(CudaBlockWalks, AttentionCases,
                         cases(each(all_of({"d32", "d64", "d96", "d128", "d192", "d256", "d72,dv104"},
                                           {"q150,k500,h3,kv1", "q200,k70,h2", "q129,k260,h2,causal",
                                            "b2,q64,k333,h5,kv1,band200_9_br"}),
                                    {"blocks16x16_12@one", "blocks64x64_10", "blocks48x32_30@bits", "blocks128x256_50",
                                     "blocks32x32_25@one"},
                                    {"bf16", "fp16"})),
                         test_name);

// Tiles of keys that many queries see, which backward works on in parts: all of them, a few, some that see none; a last
// part that is short.
INSTANTIATE_TEST_SUITE_P(CudaLongTiles, AttentionCases,
                         cases(each({"q1300,k300,h3,d128", "b2,q900,k200,h2,d64,causal", "q2100,k140,h2,kv1,d256",
                                     "q1111,k500,h2,d96,band1000_20_br", "q4200,k150,h1,d128,amp8"},
                                    {"blocks64x64_100", "blocks128x128_60", "blocks16x32_40@bits"}, {"bf16", "fp16"})),
                         test_name);

// Rows of units of 16 bytes or not, modifiers, dropout, splits: the general instances.
INSTANTIATE_TEST_SUITE_P(
    CudaBlocksBeside, AttentionCases,
    cases(each(all_of({"b2,q100,k150,h4,g2,kv2,d64", "b2,q100,k150,h4,g2,kv2,d128", "b2,q100,k150,h4,g2,kv2,d256"},
                      {"bias,p0.2", "alibi,softcap5", "padded,bias@odd", "sinks,dlse,bias_blocks", "scale-0.3",
                       "wide,splits3", "amp8"}),
               {"blocks16x48_30@bits", "blocks64x64_40@groups", "blocks16x16_40"}, {"bf16", "fp16", "fp32"})),
    test_name);

}  // namespace
}  // namespace xformers::testing
