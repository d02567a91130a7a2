// What is asked of the CPU kernels alone: their plans, lengths that no copy of the tensors could follow, one kernel for
// both widths of the output.
#include "xformers/kernels/cpu/attention/attention_cpu.h"

#include "tests/kernels/attention_check.h"
#include "tests/reference/rounding.h"
#include "xformers/kernels/cpu/attention/plan.h"

namespace xformers::testing {

TEST(Plans, MakeExactlyTheChosenSplits) {
  for (const AttentionCase& c : parse_attention_cases(
           {"attention:bf16,q1+5+0+9,used0+100+37+1,page16,h4,kv1,d32", "attention:fp32,b3,q7,k20,h4,d32"})) {
    const AttentionRun run(c);
    for (int64_t splits : {1, 2, 5, 40}) {
      AttentionFwdParams params = run.forward_params();
      params.num_splits = splits;
      for (const cpu::ForwardPlan& plan : {cpu::plan_forward(params, 2), cpu::plan_decode(params, 2)}) {
        for (const cpu::ForwardMerge& merge : plan.merges) EXPECT_EQ(merge.num_splits, splits);
        const size_t pieces = splits == 1 ? plan.tasks.size() : plan.merges.size();
        EXPECT_EQ(plan.tasks.size(), pieces * splits);
        EXPECT_EQ(plan.merges.empty(), splits == 1);
        EXPECT_GT(pieces, 0u);
      }
    }
  }
}

// Lengths and starts that do not fit into the pages are clamped to the sequence's row of the table.
TEST(PagedLengths, AreClampedToThePages) {
  for (const AttentionCase& c : parse_attention_cases({"attention:*,q1+1+1,from0+0+0,used64+64+64,h8,kv2,d64,page16",
                                                       "attention:*,q70+3+20,from0+0+0,used64+64+64,h2,d32,page64"})) {
    AttentionRun run(c);
    run.cu_seqlens_k = {-5, 2000000000, 30};
    run.used_k = {1000000, 7, 2147483647};
    run.forward();
    EXPECT_EQ(run.damaged_output(), "") << to_text(c);
    run.cu_seqlens_k = {0, 0, 0};
    run.used_k = {-7, 2147483647, 64};
    run.forward();
    EXPECT_EQ(run.damaged_output(), "") << to_text(c);
  }
}

// The wide output is what the narrow one is rounded from.
TEST(WideOut, RoundsToTheNarrowOne) {
  for (AttentionCase c :
       parse_attention_cases({"attention:*,b2,q1,k900,h4,kv2,d64", "attention:*,q70,k150,h2,d40,p0.2",
                              "attention:*,q1,k900,h4,kv2,d64,splits3", "attention:*,q5+0+9,k9+9+64,h2,d32"})) {
    AttentionRun narrow(c);
    narrow.forward();
    c.wide_out = true;
    AttentionRun wide(c);
    wide.forward();
    const std::vector<double> expected = narrow.out.values(), got = wide.out.values();
    size_t finer = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      EXPECT_EQ(reference::round_to(c.dtype, got[i]), expected[i]) << to_text(c) << " element " << i;
      finer += got[i] != expected[i];
    }
    if (size_of(c.dtype) == 2) {
      EXPECT_GT(finer, got.size() / 4) << to_text(c);
    }
  }
}

}  // namespace xformers::testing
