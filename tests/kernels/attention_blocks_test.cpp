// Block masks: every size of block beside bands, modifiers, dropout and shared heads, by every kernel.
#include <cmath>

#include "tests/kernels/attention_each_kernel.h"
#include "xformers/kernels/params/attention_check.h"

namespace xformers::testing {
namespace {

// Every shape and band that changes what a walk meets, each with these words.
std::vector<std::string> with(const std::string& words) {
  std::vector<std::string> texts;
  for (const char* problem :
       {"b2,q100,k130,h2,d32", "q70,k150,h2,d64,causal_br", "b2,q65,k100,h4,g2,kv2,d16,causal,dlse",
        "q1,k300,h4,kv2,d64", "q5,k300,h8,kv2,d64,splits4,causal_br", "q40,k200,h4,kv1,d32,splits3,band90_40_br",
        "q50,k90,h2,d32,p0.3,dlse", "q30,k100,h1,d257", "q70,k300,h1,d32,t4", "q9,k0,h2,d8", "q0,k9,h2,d8",
        "q1,k1,h1,d8"}) {
    texts.push_back("attention:*," + std::string(problem) + "," + words);
  }
  return texts;
}

}  // namespace

INSTANTIATE_TEST_SUITE_P(Blocks16, AttentionCases, cases(with("blocks16x16_20")), test_name);
INSTANTIATE_TEST_SUITE_P(Blocks48, AttentionCases, cases(with("blocks48x48_50@groups")), test_name);
INSTANTIATE_TEST_SUITE_P(Blocks64, AttentionCases, cases(with("blocks64x64_40")), test_name);
INSTANTIATE_TEST_SUITE_P(Blocks128, AttentionCases, cases(with("blocks128x128_60@one")), test_name);
INSTANTIATE_TEST_SUITE_P(BlocksUnequal, AttentionCases, cases(with("blocks16x64_30@bits")), test_name);
INSTANTIATE_TEST_SUITE_P(BlocksTall, AttentionCases, cases(with("blocks128x16_40@bits")), test_name);
INSTANTIATE_TEST_SUITE_P(BlocksModified, AttentionCases, cases(with("blocks32x16_40@bits,softcap3,sinks,bias")),
                         test_name);
INSTANTIATE_TEST_SUITE_P(BlocksFull, AttentionCases, cases(with("blocks32x1024_100@bits,bias_blocks")), test_name);
INSTANTIATE_TEST_SUITE_P(BlocksNone, AttentionCases, cases(with("blocks64x16_0,sinks")), test_name);

class EachKernelSkips : public EachKernel {};

TEST_P(EachKernelSkips, InvisibleBlocks) {
  std::vector<std::string> texts;
  for (const char* blocks : {"16x16_15", "16x16_50@bits", "32x32_30@groups", "64x64_40", "48x80_50@bits", "128x128_50",
                             "16x64_30@one", "64x16_30"}) {
    for (const char* problem : {"b2,q70,k150,h4,g2,kv2,d32", "q90,k140,h1,d40,bias,softcap3,alibi,p0.2",
                                "q2,k300,h4,kv2,d64,causal_br", "q3,k300,h8,kv2,d32,sinks"}) {
      texts.push_back(std::string("attention:*,") + problem + ",blocks" + blocks);
    }
  }
  force(
      texts, [](AttentionRun&) {}, [](const AttentionRun& run) { EXPECT_TRUE(matches_reference(run)); }, Runs::kBoth,
      "a block mask");
}

// What no query sees is never read: NaN there changes nothing, and its gradients are 0.
TEST_P(EachKernelSkips, WhatNobodySees) {
  force(
      {"attention:*,q70,k400,h2,d32,blocks16x128_100", "attention:*,q2,k400,h4,kv2,d64,blocks16x128_100"},
      [](AttentionRun& run) {  // all but the keys [128, 256), the second of four blocks
        std::erase(run.key_blocks, 1);
        for (int32_t& offset : run.key_offsets) offset = offset / 4 * 3;
        const auto rows = static_cast<int32_t>(run.key_offsets.size() / run.attention_case().heads) - 1;
        run.query_offsets.clear(), run.query_blocks.clear();
        for (int64_t column = 0; column < 5 * run.attention_case().heads; ++column) {
          run.query_offsets.push_back(static_cast<int32_t>(run.query_blocks.size()));
          for (int32_t row = 0; row < rows && column % 5 != 1 && column % 5 != 4; ++row)
            run.query_blocks.push_back(row);
        }
        run.k.set({0, 130, 0, 0, 1}, NAN), run.v.set({0, 200, 0, 0, 1}, NAN);
      },
      [](const AttentionRun& run) {
        for (int64_t query = 0; query < run.attention_case().seqlen_q; ++query) {
          EXPECT_TRUE(std::isfinite(run.out.get({0, query, 0, 0, 1})));
          EXPECT_TRUE(!forces_backward() || std::isfinite(run.dq.get({0, query, 0, 0, 1})));
        }
        for (int64_t key = 128; forces_backward() && key < 256; ++key) {
          EXPECT_EQ(run.dk.get({0, key, 0, 0, 0}), 0);
          EXPECT_EQ(run.dv.get({0, key, 0, 0, 0}), 0);
        }
      },
      Runs::kItsOwn, "a block mask");
}

INSTANTIATE_TEST_SUITE_P(Kernels, EachKernelSkips, ::testing::ValuesIn(each_kernel()), kernel_name);

TEST(AttentionBlocks, ThatDontFitAreRefused) {
  const AttentionRun run(parse_attention_case("attention:fp32,q30,k40,blocks16x16_50"));
  EXPECT_NO_THROW(check(run.forward_params()));
  AttentionFwdParams params = run.forward_params();
  params.blocks.block_q = 24;
  EXPECT_THROW(check(params), Error);
  params = run.forward_params();
  params.blocks.num_k_blocks = 4;
  EXPECT_THROW(check(params), Error);
}

}  // namespace xformers::testing
