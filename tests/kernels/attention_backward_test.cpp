// Backward by every kernel of this device's list: sequences of a few tokens, many of which share a tile; numbers that
// are not finite, which stay in their sequence; gradients in the range of fp16 out of products that are not; keys that
// are all alike.
#include <cmath>

#include "tests/kernels/attention_each_kernel.h"

namespace xformers::testing {
namespace {

class EveryBackward : public EachKernel {
 protected:
  // Runs backward with this kernel alone; false if it refuses the call.
  static bool runs(AttentionRun& run) {
    const ForcedKernel forced(GetParam());
    try {
      run.backward();
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(GetParam()), std::string::npos) << error.what();
      return false;
    }
    EXPECT_EQ(last_backward_kernel(), GetParam());
    return true;
  }
};

void check(const AttentionRun& run) { EXPECT_TRUE(matches_reference(run)); }

// "q3+0+5,k...": i * step % (most + 1) tokens.
std::string lengths(char name, int sequences, int most, int step) {
  std::string text(1, name);
  for (int i = 0; i < sequences; ++i) text += (i ? "+" : "") + std::to_string(i * step % (most + 1));
  return text;
}

TEST_P(EveryBackward, TakesShortSequences) {
  const std::string same = lengths('q', 45, 40, 13) + "," + lengths('k', 45, 40, 13) + ",h2,",
                    others = lengths('q', 45, 40, 13) + "," + lengths('k', 45, 30, 17) + ",h2,",
                    few_queries = lengths('q', 40, 2, 1) + "," + lengths('k', 40, 90, 31) + ",h2,",
                    many_queries = lengths('q', 40, 90, 31) + "," + lengths('k', 40, 3, 1) + ",h1,";
  std::vector<std::string> texts;
  for (const std::string& rest :
       {same + "d64", same + "d64,causal,dlse", same + "d59,band5_3", same + "d32", same + "d256,causal",
        others + "d64,causal_br", others + "d64,t1", others + "d96", others + "d64,band2_0_br,t1", others + "d128",
        few_queries + "d64", many_queries + "d64,causal_br", same + "d64,p0.2"}) {
    texts.push_back("attention:*," + rest);
  }
  // A long one among them; one token each; thousands of three tokens and less.
  texts.push_back("attention:*,q3+3+3+3+300+5+5+5+5,k4+4+4+4+280+5+5+5+5,h1,d64,causal");
  texts.push_back("attention:*," + lengths('q', 150, 1, 1) + "," + lengths('k', 150, 1, 1) + ",h1,d64");
  for (const char* dtype : {"bf16", "fp16"}) {
    texts.push_back(std::string("attention:") + dtype + "," + many_queries + "d192");
    texts.push_back(std::string("attention:") + dtype + "," + lengths('q', 2500, 3, 2) + "," +
                    lengths('k', 2500, 3, 3) + ",h1,d128,causal_br");
  }
  force(texts, [](AttentionRun&) {}, check);
}

// Tiles that span sequences, which those of 16 bits may do, and rows far from 0 beside those that are not: scores of a
// row in three are up to 2^20, exact in fp32, those of the others below 2.
TEST_P(EveryBackward, TakesLargeScoresOfShortSequences) {
  const std::string sequences = lengths('q', 30, 40, 13) + "," + lengths('k', 30, 30, 17) + ",h2,scale1,";
  std::vector<std::string> texts;
  for (const char* dtype : {"bf16", "fp16"}) {
    for (const char* rest : {"d64,causal", "d128", "d256,dlse", "d59,causal_br"})
      texts.push_back(std::string("attention:") + dtype + "," + sequences + rest);
  }
  force(
      texts,
      [](AttentionRun& run) {
        run.held_scores = true;
        run.q.fill([](const Sizes& at) {
          if (at[1] % 3) return at[4] == 2 ? 1.0 : 0.0;
          return at[4] == 0 ? (at[1] % 2 ? -0x1p10 : 0x1p10) : at[4] == 1 ? 1 : 0;
        });
        run.k.fill([](const Sizes& at) {
          return at[4] == 0   ? 0x1p10
                 : at[4] == 1 ? -static_cast<double>(at[1] % 3)
                 : at[4] == 2 ? 0.25 * static_cast<double>(at[1] % 8)
                              : 0;
        });
      },
      check, Runs::kBoth, "dtype");
}

// One element of a sequence, or all that came of it in forward, is NaN.
TEST_P(EveryBackward, KeepsNanInItsSequence) {
  constexpr int64_t kSequence = 4;
  for (const AttentionCase& c :
       parse_attention_cases({"attention:*,q9+30+0+17+12+40+3+25+31,k9+30+0+17+12+40+3+25+31,h2,d64",
                              "attention:*,q9+30+0+17+12+40+3+25+31,k9+30+0+17+12+40+3+25+31,h2,d256",
                              "attention:*,q9+30+0+17+12+40+3+25+31,k12+20+5+0+22+40+3+25+31,h2,d59,causal_br"})) {
    for (const char what : {'q', 'k', 'v', 'o'}) {
      AttentionRun run(c);
      run.forward();
      if (!runs(run)) continue;
      const std::vector<double> clean[] = {run.dq.values(), run.dk.values(), run.dv.values()};
      const int64_t query = run.cu_seqlens_q[kSequence], key = run.cu_seqlens_k[kSequence],
                    queries = run.cu_seqlens_q[kSequence + 1] - query, keys = run.cu_seqlens_k[kSequence + 1] - key;
      for (int64_t head = 0; head < 2; ++head) {
        StridedTensor& spoilt = what == 'q' ? run.q : what == 'k' ? run.k : what == 'v' ? run.v : run.dout;
        spoilt.set({0, what == 'q' || what == 'o' ? query : key, 0, head, 3}, NAN);
        for (int64_t i = 0; i < queries && what != 'o'; ++i) {
          if (what == 'q' && i > 0) break;
          if (what != 'v') run.lse.set({0, 0, head, query + i, 0}, NAN);
          for (int64_t d = 0; d < c.head_dim; ++d) {
            if (what != 'v' || d == 3) run.out.set({0, query + i, 0, head, d}, NAN);
          }
        }
      }
      ASSERT_TRUE(runs(run));
      const StridedTensor* const gradients[] = {&run.dq, &run.dk, &run.dv};
      for (int which = 0; which < 3; ++which) {
        const std::vector<double> now = gradients[which]->values();
        const int64_t begin = (which == 0 ? query : key) * c.heads * c.head_dim,
                      end = begin + (which == 0 ? queries : keys) * c.heads * c.head_dim;
        int64_t changed = 0;
        for (int64_t i = 0; i < static_cast<int64_t>(now.size()); ++i) {
          if (i < begin || i >= end) changed += now[static_cast<size_t>(i)] != clean[which][static_cast<size_t>(i)];
        }
        EXPECT_EQ(changed, 0) << to_text(c) << " of gradient " << which << ", NaN in " << what;
      }
      EXPECT_TRUE(std::isnan(run.dq.get({0, query + (what == 'q' || what == 'o' ? 0 : queries - 1), 0, 1, 0})))
          << to_text(c) << ", NaN in " << what;
    }
  }
}

// dS of 1e6 and more, dq, dk and dv of a few thousand; next to it, in other rows, dS near 1. (A bias has dS itself as
// its gradient, which is then beyond fp16: it has no case here.)
TEST_P(EveryBackward, SumsProductsBeyondFp16) {
  int taken = 0;
  for (const AttentionCase& c :
       parse_attention_cases({"attention:fp16,q70,k8,h2,d64", "attention:fp16,q150,k9,h2,d128,causal_br,dlse",
                              "attention:fp16,q140,k8,h1,d59,t1", "attention:fp16,q64,k8,h1,d256",
                              "attention:fp16,q70+3+40,k8+5+7,h2,d64", "attention:fp16,q140,k6,h2,d64,p0.2"})) {
    AttentionRun run(c);
    const auto scale = [](StridedTensor& t, const auto& factor) {
      t.fill([&](const Sizes& index) { return t.get(index) * factor(index); });
    };
    scale(run.q, [](const Sizes&) { return 1e-3; });
    scale(run.k, [](const Sizes&) { return 1e-3; });
    scale(run.v, [](const Sizes& index) { return index[1] < 8 ? 2e3 : 1.0; });
    scale(run.dout, [](const Sizes& index) { return index[1] % 64 < 32 ? 1e3 : 1e-2; });
    run.forward();
    if (!runs(run)) continue;
    ++taken;
    check(run);
  }
  if (taken == 0) GTEST_SKIP() << GetParam() << " takes no fp16";
}

// Asked for the same bits every time (t1), which sums over many tiles of keys could upset.
TEST_P(EveryBackward, RepeatsItsBits) {
  int taken = 0;
  for (const AttentionCase& c : parse_attention_cases(
           {"attention:bf16,q200,k600,h2,d64,t1", "attention:fp16,q300,k260,h2,d128,causal_br,t1",
            "attention:fp32,q170,k300,h1,d64,causal,t1", "attention:bf16,q150,k500,h4,kv2,d64,band150_60,t1",
            "attention:bf16,q9+280+30+3,k9+380+200+5,h1,d128,causal,t1", "attention:fp16,q100,k260,h1,d256,t1"})) {
    AttentionRun first(c);
    first.forward();
    if (!runs(first)) continue;
    ++taken;
    check(first);
    for (int repeat = 0; repeat < 3; ++repeat) {
      AttentionRun again(c);
      again.forward();
      ASSERT_TRUE(runs(again));
      ASSERT_EQ(again.output_bytes(), first.output_bytes()) << to_text(c) << ", repeat " << repeat;
    }
  }
  if (taken == 0) GTEST_SKIP() << GetParam() << " takes none of these";
}

// dq is 0 but for rounding: dS of a row adds up to 0, and all its keys are one. What delta lost is then the same in
// every term of the sum (roundings() in tests/reference/attention.h).
TEST_P(EveryBackward, TakesEqualKeys) {
  std::vector<std::string> texts;
  for (const char* rest : {"q70,k83,h2,d64", "q100,k130,h1,d128,causal_br", "q40,k300,h1,d32", "q40,k200,h2,d256",
                           "q5+0+70,k9+33+64,h2,d32,causal", "b2,q64,k97,h2,d64,p0.2", "q20,k30,h1,d257"}) {
    texts.push_back(std::string("attention:*,") + rest);
  }
  force(
      texts,
      [](AttentionRun& run) {
        run.held_scores = true;
        const StridedTensor one = run.k;
        run.k.fill([&](const Sizes& at) { return one.get({0, 0, at[2], at[3], at[4]}); });
      },
      check);
}

INSTANTIATE_TEST_SUITE_P(Kernels, EveryBackward, ::testing::ValuesIn(backward_kernels()), kernel_name);

}  // namespace
}  // namespace xformers::testing
