// Block masks on the CPU: the same bits every time, and tasks that see as much as each other.
#include <gtest/gtest.h>

#include "tests/kernels/attention_run.h"
#include "xformers/kernels/cpu/attention/plan.h"

namespace xformers::testing {
namespace {

TEST(AttentionBlocks, RepeatBitwise) {
  for (const char* text : {"attention:fp32,q400,k700,h3,d32,blocks16x32_20@bits,t3",
                           "attention:bf16,b2,q400,k700,h4,kv2,d64,blocks64x64_30,causal,t4"}) {
    AttentionRun first(parse_attention_case(text)), second(parse_attention_case(text));
    first.run(), second.run();
    EXPECT_EQ(first.output_bytes(), second.output_bytes()) << text;
  }
}

// Blocks that are all visible give the bits that no mask gives.
TEST(AttentionBlocks, AllOfThemAreNone) {
  AttentionRun masked(parse_attention_case("attention:fp32,b2,q300,k400,h2,d64,causal,t1,blocks64x64_100"));
  AttentionRun plain(parse_attention_case("attention:fp32,b2,q300,k400,h2,d64,causal,t1"));
  masked.run(), plain.run();
  EXPECT_EQ(masked.output_bytes(), plain.output_bytes());
}

// Parts of keys that see as many blocks as the others, not as many keys.
TEST(AttentionBlocks, AreCountedForTasks) {
  AttentionRun run(parse_attention_case("attention:fp32,q64,k8192,h1,d16,blocks64x64_100"));
  run.key_blocks.resize(64);  // the first half is visible
  run.key_offsets = {0, 64};
  const AttentionFwdParams params = run.forward_params();
  const cpu::ForwardPlan plan = cpu::plan_forward(params, 4);
  ASSERT_GT(plan.tasks.size(), 1u);
  for (const cpu::ForwardTask& task : plan.tasks) {
    const int64_t seen = std::min<int64_t>(task.keys.end, 4096) - std::min<int64_t>(task.keys.begin, 4096);
    EXPECT_NEAR(static_cast<double>(seen), 4096.0 / static_cast<double>(plan.tasks.size()), 64);
  }
}

}  // namespace
}  // namespace xformers::testing
