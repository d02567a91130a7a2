// NaN stays NaN: one in a query, or in a key or a bias that a row sees, makes the row's out, lse and gradients NaN; one
// in a value makes its dim of out NaN. Other rows are untouched.
#include <cmath>
#include <limits>

#include "tests/kernels/attention_each_kernel.h"

namespace xformers::testing {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

const std::vector<std::string> kCases = {"attention:*,b2,q70,k83,h2,d64",
                                         "attention:*,b2,q1,k700,h4,kv2,d64",
                                         "attention:*,q3,k700,h8,kv2,d128,splits4",
                                         "attention:*,q40,k300,h2,d32,splits3",
                                         "attention:*,q200,k130,h1,d128",
                                         "attention:*,q40,k200,h2,d256",
                                         "attention:*,q20,k30,h1,d257",
                                         "attention:*,q70,k83,h2,d40,bias@odd",
                                         "attention:*,q2,k4200,h2,kv1,d32",
                                         "attention:*,q20,k4200,h1,d16"};

const std::vector<std::string> kSplitCases = {"attention:*,q3,k700,h8,kv2,d128,splits4",
                                              "attention:*,q40,k300,h2,d32,splits3", "attention:*,q2,k4200,h2,kv1,d32",
                                              "attention:*,q20,k30,h1,d257"};

// One element of every head of the last batch element.
void spoil(StridedTensor& t, const AttentionCase& c, int64_t row, int64_t dim) {
  Sizes at{c.batch - 1, row, 0, 0, dim};
  for (at[2] = 0; at[2] < c.num_groups(); ++at[2])
    for (at[3] = 0; at[3] < c.heads_per_group(); ++at[3]) t.set(at, kNaN);
}

void check(const AttentionRun& run) { EXPECT_TRUE(matches_reference(run)); }

// Everything of the last batch element's spoilt rows is NaN, nothing else. What is dropped counts nothing, or what the
// NaN makes of it: both are right.
void check_dropped(const AttentionRun& run, int64_t spoilt_query) {
  const AttentionCase& c = run.attention_case();
  const reference::AttentionProblem problem = run.problem();
  const auto expect = [&](const StridedTensor& t, const Sizes& at, bool spoilt, const char* name) {
    EXPECT_EQ(std::isnan(t.get(at)), spoilt) << to_text(c) << ": " << name << " " << at[1] << " " << at[3];
  };
  for (int64_t batch = 0; batch < c.batch; ++batch) {
    const bool last = batch == c.batch - 1;
    for (int64_t head = 0; head < c.heads; ++head) {
      for (int64_t query = 0; query < c.seqlen_q; ++query) {
        const bool spoilt = last && query == spoilt_query;
        expect(run.out, {batch, query, 0, head, 1}, spoilt, "out");
        expect(run.lse, {batch, 0, head, query, 0}, spoilt, "lse");
        expect(run.dq, {batch, query, 0, head, 1}, spoilt, "dq");
      }
      for (int64_t key = 0; key < c.seqlen_k; ++key) {
        expect(run.dk, {batch, key, 0, head, 1}, last, "dk");
        const bool kept = problem.dropout_factor(batch, head, spoilt_query, key) > 0;
        if (!last || kept) expect(run.dv, {batch, key, 0, head, 1}, last, "dv");
      }
    }
  }
}

class NotANumber : public EachKernel {};
TEST_P(NotANumber, InAQuery) {
  force(
      kCases, [](AttentionRun& run) { spoil(run.q, run.attention_case(), run.attention_case().seqlen_q / 2, 3); },
      check);
}
TEST_P(NotANumber, InAQueryWithDropout) {
  const int64_t query = 29;
  force(
      {"attention:*,b2,q64,k97,h2,d64,p0.2"}, [&](AttentionRun& run) { spoil(run.q, run.attention_case(), query, 3); },
      [&](const AttentionRun& run) { check_dropped(run, query); }, Runs::kBoth, "dropout");
}
TEST_P(NotANumber, InAKey) {
  for (int64_t part : {0, 1, 3}) {  // of the keys: parts of them are worked on by themselves
    force(
        part == 1 ? kCases : kSplitCases,
        [&](AttentionRun& run) {
          const AttentionCase& c = run.attention_case();
          spoil(run.k, c, (c.seqlen_k - 1) * part / 3, 7);
        },
        check);
  }
}
TEST_P(NotANumber, InEveryKey) {
  force(
      kCases,
      [](AttentionRun& run) {
        for (int64_t key = 0; key < run.attention_case().seqlen_k; ++key) spoil(run.k, run.attention_case(), key, 0);
      },
      check);
}
TEST_P(NotANumber, InAValue) {
  force(
      kCases, [](AttentionRun& run) { spoil(run.v, run.attention_case(), run.attention_case().seqlen_k / 2, 5); },
      check);
}
TEST_P(NotANumber, InTheBias) {
  force(
      {"attention:*,b2,q70,k83,h2,d64,bias", "attention:*,q70,k83,h2,d40,bias@odd",
       "attention:*,q3,k700,h4,kv2,d64,bias", "attention:*,q40,k300,h2,d32,bias,splits3",
       "attention:*,q40,k200,h1,d256,bias", "attention:*,q20,k30,h1,d257,bias"},
      [](AttentionRun& run) {
        const AttentionCase& c = run.attention_case();
        run.bias.set({c.batch - 1, 0, 0, c.seqlen_q / 2, c.seqlen_k / 2}, kNaN);
        run.bias.set({c.batch - 1, 0, 0, 0, c.seqlen_k - 1}, kNaN);
      },
      check, Runs::kBoth, "bias");
}

// Rows that do not see a key have nothing of it.
TEST_P(NotANumber, InAMaskedKey) {
  force(
      {"attention:*,b2,q70,k70,h2,d64,causal", "attention:*,q130,k130,h2,d128,causal,wide",
       "attention:*,q4,k300,h4,kv2,d64,causal_br", "attention:*,q70,k70,h1,d256,causal",
       "attention:*,q70,k70,h1,d40,causal,bias", "attention:*,q20,k20,h1,d257,causal"},
      [](AttentionRun& run) { spoil(run.k, run.attention_case(), run.attention_case().seqlen_k - 1, 2); },
      [](const AttentionRun& run) {
        const AttentionCase& c = run.attention_case();
        for (int64_t batch = 0; batch < c.batch; ++batch) {
          for (int64_t query = 0; query < c.seqlen_q; ++query) {
            const bool spoilt = batch == c.batch - 1 && query == c.seqlen_q - 1;
            EXPECT_EQ(std::isnan(run.lse.get({batch, 0, 0, query, 0})), spoilt) << to_text(c) << " query " << query;
            EXPECT_EQ(std::isnan(run.out.get({batch, query, 0, 0, 1})), spoilt) << to_text(c) << " query " << query;
          }
        }
      },
      Runs::kForward);
}

// Short sequences may share a tile: what one of them has, the others have not.
TEST_P(NotANumber, InOneOfManySequences) {
  std::string queries = "q16", keys = "k16", few = "q1";
  for (int i = 1; i < 40; ++i) {
    queries += "+" + std::to_string(1 + i * 7 % 16), keys += "+" + std::to_string(1 + i * 5 % 16);
    few += "+" + std::to_string(i % 3);
  }
  for (bool value : {false, true}) {
    force(
        {"attention:*," + queries + "," + keys + ",h9,d32", "attention:*," + queries + "," + keys + ",h8,kv4,d128",
         "attention:*," + few + "," + keys + ",h4,kv2,d64"},
        [&](AttentionRun& run) {
          const AttentionCase& c = run.attention_case();
          spoil(value ? run.v : run.k, c, c.seqlen_k / 2, 9);
        },
        [](const AttentionRun& run) { EXPECT_TRUE(matches_reference(run, forces_backward())); }, Runs::kItsOwn);
  }
}
INSTANTIATE_TEST_SUITE_P(Kernels, NotANumber, ::testing::ValuesIn(each_kernel()), kernel_name);

}  // namespace
}  // namespace xformers::testing
