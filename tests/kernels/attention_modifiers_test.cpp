// What is done to scores between the product and the softmax: softcap, ALiBi, a bias of packed sequences, sinks; alone
// and together, with every layout, band and number of queries, and at the ends of their ranges.
#include <cmath>
#include <limits>

#include "tests/kernels/attention_each_kernel.h"
#include "tests/kernels/random_case.h"
#include "xformers/kernels/params/attention_check.h"

namespace xformers::testing {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity(), kNaN = std::numeric_limits<double>::quiet_NaN();

// Every layout and band that changes what a modifier sees, each with these words.
std::vector<std::string> with(const std::string& words) {
  std::vector<std::string> texts;
  for (const char* problem :
       {"b2,q70,k83,h2,d32", "b2,q33,k130,h2,d64,causal_br", "q90,k60,h1,d40,causal", "q65,k130,h4,g2,kv2,d16,dlse",
        "q1,k700,h4,kv2,d64", "q3,k700,h8,kv2,d128,splits4,causal_br", "q40,k300,h2,d32,splits3,band9_4_br",
        "q50,k60,h2,d32,p0.3,dlse", "q20,k300,h1,d257,band40_20", "q40+0+5+70,k90+7+0+70,h3,d32,dlse",
        "q3+9+1,k40+300+1,used20+299+0,h4,kv1,d64,causal_br", "q1+2,k500,from100+0,used90+300,h4,kv2,d64",
        "q2+1+5,used60+0+33,page16,h4,kv2,d32,causal_br", "q0,k9,h2,d8", "q9,k0,h2,d8", "q1,k1,h1,d8"}) {
    texts.push_back("attention:*," + std::string(problem) + "," + words);
  }
  return texts;
}

std::vector<std::string> packed_biases() {
  std::vector<std::string> texts;
  for (const char* problem : {"q40+0+5+70,k90+7+0+70,h3,d32,dlse", "q30+90,k130+70,h4,g2,kv2,d64,causal,t3",
                              "q200+140+3,k300+150+20,h1,d16,t3", "q3+9+1,k40+300+1,used20+299+0,h4,kv1,d64,causal_br",
                              "q1+2,k500,from100+0,used90+300,h4,kv2,d64", "q2+1+5,used60+0+33,page16,h4,kv2,d32",
                              "q50+70,k70+60,h2,d32,band20_9_br,p0.3", "q1+1,k600+90,h8,kv2,d128,splits3"}) {
    for (const char* bias : {"bias", "bias@seqs", "bias@heads", "bias_blocks@seqs", "bias_prefix33", "bias@rows",
                             "bias@kstride", "bias@odd"}) {
      texts.push_back("attention:*," + std::string(problem) + "," + bias);
    }
  }
  return texts;
}

}  // namespace

INSTANTIATE_TEST_SUITE_P(PackedBias, AttentionCases, cases(packed_biases()), test_name);
INSTANTIATE_TEST_SUITE_P(Sinks, AttentionCases, cases(with("sinks")), test_name);
INSTANTIATE_TEST_SUITE_P(SinksOfSequences, AttentionCases, cases(with("sinks@seqs")), test_name);
INSTANTIATE_TEST_SUITE_P(Softcap, AttentionCases, cases(with("softcap2")), test_name);
INSTANTIATE_TEST_SUITE_P(Alibi, AttentionCases, cases(with("alibi")), test_name);
INSTANTIATE_TEST_SUITE_P(AlibiOfSequences, AttentionCases, cases(with("alibi@seqs")), test_name);
INSTANTIATE_TEST_SUITE_P(All, AttentionCases, cases(with("softcap3,alibi@seqs,sinks,bias")), test_name);

class EachKernelModifies : public EachKernel {};

TEST_P(EachKernelModifies, AllOfThem) {
  force(
      {"attention:*,b2,q70,k83,h2,d64,softcap3,alibi,sinks,bias", "attention:*,q2,k700,h4,kv2,d64,softcap3,alibi,sinks",
       "attention:*,q3,k700,h8,kv2,d128,splits4,softcap1,alibi@seqs,sinks@seqs",
       "attention:*,q1+3,k600+90,h4,kv2,d64,softcap1,alibi@seqs,sinks@seqs,bias@seqs,causal_br",
       "attention:*,q40+70,k300+5,h2,d32,softcap3,alibi,sinks,bias@heads",
       "attention:*,b2,q270,k283,h2,d64,softcap3,alibi,sinks",
       "attention:*,q130+150,k300+90,h2,d128,softcap3,alibi@seqs"},
      [](AttentionRun&) {}, [](const AttentionRun& run) { EXPECT_TRUE(matches_reference(run)); }, Runs::kBoth,
      "softcap");
}

// From scores that tanh leaves alone to those it flattens.
TEST_P(EachKernelModifies, ScoresOfEverySizeBesideTheCap) {
  for (const char* amplitude : {"0", "1e-3", "1e-1", "1", "10", "1e4"}) {
    const std::string words = std::string(",softcap1,scale1,amp") + amplitude;
    force(
        {"attention:*,q20,k70,h2,d16" + words, "attention:*,q1,k200,h4,kv2,d16" + words}, [](AttentionRun&) {},
        [](const AttentionRun& run) { EXPECT_TRUE(matches_reference(run)); }, Runs::kBoth, "softcap");
  }
}

TEST_P(EachKernelModifies, SlopesOfEverySize) {
  for (const double slope : {0.0, 1e-30, 1.0}) {
    force(
        {"attention:*,q20,k300,h2,d16,alibi", "attention:*,q1,k300,h4,kv2,d16,alibi,causal_br"},
        [=](AttentionRun& run) { run.slopes.fill(slope); },
        [](const AttentionRun& run) { EXPECT_TRUE(matches_reference(run)); }, Runs::kBoth, "alibi_slopes");
  }
}

// A sink of 0 is softmax "off by one", of -inf none at all; rows that see nothing have it alone.
TEST_P(EachKernelModifies, SinksOfEverySize) {
  for (const double sink : {-kInfinity, 0.0, -1e4, 1e4, 1e9}) {
    force(
        {"attention:*,q70,k60,h2,d32,causal_br,sinks,dlse", "attention:*,q20,k300,h2,d16,sinks,splits3,dlse",
         "attention:*,q2,k300,h4,kv2,d16,sinks", "attention:*,q2,k300,h4,kv2,d16,sinks,splits2,bias_prefix300",
         "attention:*,q9,k0,h2,d8,sinks"},
        [=](AttentionRun& run) {
          run.sinks.fill(sink);
          // A gradient of an lse of -inf is that of nothing.
          if (sink == -kInfinity && run.attention_case().band.bottom_right) run.dlse.fill(0);
        },
        [](const AttentionRun& run) { EXPECT_TRUE(matches_reference(run)); });
  }
}

// NaN of one head makes all of it NaN, and nothing of another.
TEST_P(EachKernelModifies, NaNStaysInItsHead) {
  const auto check_heads = [](const AttentionRun& run) {
    const AttentionCase& c = run.attention_case();
    const auto expect = [&](const StridedTensor& t, const Sizes& at, bool spoilt, const char* name) {
      EXPECT_EQ(std::isnan(t.get(at)), spoilt) << to_text(c) << " " << name << " of head " << at[3] + at[2];
    };
    for (int64_t head = 0; head < c.heads; ++head) {
      const bool spoilt = head == 1;
      for (int64_t query = 0; query < c.seqlen_q; ++query) {
        expect(run.out, {0, query, 0, head, 1}, spoilt, "out");
        expect(run.lse, {0, 0, head, query, 0}, spoilt, "lse");
        expect(run.dq, {0, query, 0, head, 1}, spoilt, "dq");
      }
      for (int64_t key = 0; key < c.seqlen_k; ++key) expect(run.dk, {0, key, 0, head, 1}, spoilt, "dk");
    }
  };
  const auto both = [&](const std::string& words, const auto& prepare) {
    force(
        {"attention:*,q40,k90,h3,d16," + words, "attention:*,q2,k90,h3,d16," + words + ",splits2"}, prepare,
        [&](const AttentionRun& run) { check_heads(run); }, Runs::kBoth, words == "alibi" ? "alibi_slopes" : "");
  };
  both("sinks", [](AttentionRun& run) { run.sinks.set({0, 0, 1, 0, 0}, kNaN); });
  both("alibi", [](AttentionRun& run) { run.slopes.set({0, 0, 1, 0, 0}, kNaN); });
}

INSTANTIATE_TEST_SUITE_P(Kernels, EachKernelModifies, ::testing::ValuesIn(each_kernel()), kernel_name);

TEST(AttentionModifiers, SoftcapIsANumberFromZeroOn) {
  for (const double softcap : {-1.0, kNaN, kInfinity}) {
    AttentionCase c = parse_attention_case("attention:fp32,q3,k4");
    c.softcap = softcap;
    try {
      check(AttentionRun(c).forward_params());
      ADD_FAILURE() << softcap;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("softcap is"), std::string::npos) << error.what();
    }
  }
}

TEST(AttentionModifiers, RandomCombinationsMatchReference) {
  for (uint64_t seed = 1; seed <= 150; ++seed) EXPECT_TRUE(matches_reference(random_modified_case(seed)));
}

}  // namespace xformers::testing
