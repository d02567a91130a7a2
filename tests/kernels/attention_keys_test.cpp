// Keys that do not lie one after the other: pages of any size, and ranges that start anywhere. Pages and rows that no
// sequence uses hold NaN, and behind the last entry of the table that may be read lies memory that can't be.
#include <cmath>
#include <limits>
#include <random>

#include "tests/kernels/attention_backend.h"
#include "tests/kernels/attention_check.h"

namespace xformers::testing {

namespace {
// Every class of page size against blocks of 32, 64 and 128 keys; tiled and decode kernels.
std::vector<std::string> page_sizes() {
  std::vector<std::string> texts;
  for (int size : {1, 3, 16, 32, 64, 100, 128, 256, 1000}) {
    const std::string page = ",page" + std::to_string(size);
    texts.push_back("attention:*,q1+1+1,used300+5+129,h8,kv2,d64" + page);
    texts.push_back("attention:*,q70+3+20,used200+0+131,h2,d32,causal_br" + page);
  }
  return texts;
}
}  // namespace
INSTANTIATE_TEST_SUITE_P(PageSizes, AttentionCases, cases(page_sizes()), test_name);

INSTANTIATE_TEST_SUITE_P(
    Paged, AttentionCases,
    cases({// Unaligned starts, shared pages, queries of every length, none, and no keys.
           "attention:*,q1+1,from5+70,used100+300,page64,h4,kv1,d128",
           "attention:*,q2+1,from63+1,used65+190,page64,h4,kv2,d64",
           "attention:*,q1+1+1+1,used256+256+100+31,page32@shared,h8,kv2,d64",
           "attention:*,q40+0+1+7,from3+9+0+17,used90+40+0+64,page16@shared,h4,kv2,d40,dv24,causal_br",
           "attention:*,q0+0,used5+6,page4,h2,d16", "attention:*,q3+4,used0+0,page4,h2,d16",
           "attention:*,q30+60,used100+60,page16,h2,d32,band20_3_br",
           "attention:*,q5+1,used70+64,page8,h4,g2,d16,padded",
           "attention:bf16,q16+1,used400+80,page48,h4,kv4,d96,bhsd",
           "attention:*,q1+1,used130+77,page16,h4,kv2,vfull,d32",
           "attention:fp32,q1+1,used9000+700,page256,h4,kv2,d64,t3",
           "attention:bf16,q1+1,used9000+700,page256,h4,kv2,d128,t3", "attention:*,q33+20,used64+90,page16,h2,d24,p0.2",
           "attention:fp16,q9+1,used64+90,page64,h2,d264"}),
    test_name);

// Ranges in any order that share keys, with gaps.
INSTANTIATE_TEST_SUITE_P(Gappy, AttentionCases,
                         cases({"attention:*,q1+1+1,k500,from200+3+190,used300+40+100,h8,kv2,d64",
                                "attention:*,q70+1+20,k300,from100+0+90,used150+120+110,h2,d32,causal_br",
                                "attention:*,q5+0+9,k100,from7+7+7,used33+33+0,h2,d40",
                                "attention:*,q2+3,k64,from0+63,used64+1,h4,kv1,d64",
                                "attention:bf16,q1+1,k700,from1+333,used640+333,h4,kv1,d128,t3"}),
                         test_name);

namespace {

const char* const kHostile[] = {"attention:*,q1+1+1,used300+5+129,h8,kv2,d64,page16",
                                "attention:*,q70+3+20,used200+9+131,h2,d32,causal_br,page64",
                                "attention:*,q1+1+1,from3+0+1,used30+50+129,h4,kv2,d64,page3,int4_1",
                                "attention:*,q40+1+1,used30+50+129,h4,kv2,d64,page32,fp8"};

}  // namespace

// Entries that point outside of the tensors are clamped: the guard pages around each tensor stay untouched.
TEST(PageEntries, AreClampedToTheTensors) {
  std::mt19937 random(5);
  for (const AttentionCase& c : parse_attention_cases({std::begin(kHostile), std::end(kHostile)})) {
    AttentionRun run(c);
    for (int64_t i = 0; i < run.num_page_entries(); ++i) {
      constexpr int32_t kLow = std::numeric_limits<int32_t>::min(), kHigh = std::numeric_limits<int32_t>::max();
      const int32_t entries[] = {kLow, -1, kHigh, kHigh - 1, static_cast<int32_t>(random()), 1 << 20};
      run.page_table()[i] = entries[random() % std::size(entries)];
    }
    run.forward();
    EXPECT_EQ(run.damaged_output(), "") << to_text(c);
  }
}

// The last page of K and V may be cut short: no row behind it is read.
TEST(PagedTensors, MayEndInsideAPage) {
  for (const AttentionCase& c : parse_attention_cases(
           {"attention:*,q1+1,used64+60,h8,kv2,d64,page64", "attention:*,q70+3,used64+60,h2,d32,page64"})) {
    AttentionRun run(c);
    AttentionFwdParams params = run.forward_params();
    params.shape.seqlen_k -= 37;
    run_forward(params, 2);
    EXPECT_EQ(run.damaged_output(), "") << to_text(c);
  }
}

// A permutation of the pages, with the table's entries to match, changes no bit.
TEST(PagedTensors, OrderOfPagesDoesNotMatter) {
  for (const AttentionCase& c : parse_attention_cases(
           {"attention:*,q1+1,used300+70,h8,kv2,d64,page32", "attention:*,q50+9,used300+70,h2,d32,page32"})) {
    AttentionRun run(c);
    run.forward();
    const std::vector<unsigned char> expected = run.out.bytes();
    const int64_t pages = c.seqlen_k / c.page_size;
    const std::vector<double> k = run.k.values(), v = run.v.values();
    const auto reversed = [&](const std::vector<double>& values, int64_t row_size) {
      std::vector<double> result(values.size());
      for (int64_t row = 0; row < c.seqlen_k; ++row) {
        const int64_t to = (pages - 1 - row / c.page_size) * c.page_size + row % c.page_size;
        std::copy_n(values.begin() + row * row_size, row_size, result.begin() + to * row_size);
      }
      return result;
    };
    const auto refill = [&](StridedTensor& t, const std::vector<double>& values) {
      size_t next = 0;
      t.fill([&](const Sizes&) { return values[next++]; });
    };
    refill(run.k, reversed(k, c.heads * c.head_dim));
    refill(run.v, reversed(v, c.heads * c.dim_v()));
    for (int64_t i = 0; i < run.num_page_entries(); ++i)
      run.page_table()[i] = static_cast<int32_t>(pages - 1 - run.page_table()[i]);
    run.forward();
    EXPECT_EQ(run.out.bytes(), expected) << to_text(c);
  }
}

}  // namespace xformers::testing
