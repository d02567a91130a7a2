// Packed sequences: block-diagonal masks with and without a band, empty sequences, gaps, hostile offsets.
#include <algorithm>
#include <cmath>

#include "tests/kernels/attention_check.h"

namespace xformers::testing {

INSTANTIATE_TEST_SUITE_P(
    Packed, AttentionCases,
    cases({"attention:*,q5+0+70+1,k9+33+64+1,h2,d32", "attention:*,q5+0+70+1,k9+33+64+1,h2,d32,causal",
           "attention:*,q5+0+70+1,k9+33+64+1,h2,d32,causal_br", "attention:*,q50+60,k70+40,h2,d32,band8_2_br,dlse",
           "attention:*,q7+5+9,k0+11+0,h2,d32", "attention:*,q0+0,k5+6,h2,d16", "attention:*,q3+4,k0+0,h2,d16",
           "attention:*,q30+30,k30+30,h4,kv2,d64,causal,p0.2", "attention:bf16,q200+1+90,k200+300+90,h2,d64,causal_br",
           "attention:fp32,q1+1+1+1+1+1,k100+3+0+64+65+1,h4,kv1,d64"}),
    test_name);

// More sequences than a warp has lanes, from none to two tiles long.
TEST(PackedSequences, Many) {
  std::string q, k;
  for (int i = 0; i < 45; ++i) {
    q += (i ? "+" : "") + std::to_string(i * 53 % 191);
    k += (i ? "+" : "") + std::to_string(i * 37 % 101);
  }
  for (const std::string head : {"attention:fp32,q", "attention:bf16,q"}) {
    for (const AttentionCase& c : parse_attention_cases({head + q + ",k" + k + ",h2,d64,causal_br"})) {
      EXPECT_TRUE(matches_reference(c));
    }
  }
}

// So many short sequences, of 0 to 23 rows and some of a tile and more, that the tiles of each by itself would be more
// than a GPU works on at a time.
std::string short_sequences(const std::string& rest) {
  std::string q, k;
  for (int i = 0; i < 60; ++i) {
    q += (i ? "+" : "") + std::to_string(i % 20 == 7 ? 140 : i * 7 % 24);
    k += (i ? "+" : "") + std::to_string(i % 20 == 3 ? 90 : i * 5 % 24);
  }
  return "attention:*,q" + q + ",k" + k + rest;
}
TEST(ShortSequences, ShareTiles) {
  for (const AttentionCase& c : parse_attention_cases(
           {short_sequences(",h8,d32"), short_sequences(",h8,d64,causal"), short_sequences(",h8,d128,causal_br,dlse"),
            short_sequences(",h10,kv5,d64"), short_sequences(",h8,d96,band5_3_br"), short_sequences(",h8,d64,wide")})) {
    EXPECT_TRUE(matches_reference(c));
  }
}

// Offsets that begin late, run out, and descend: rows of no sequence are empty, nothing else is written.
TEST(ShortSequences, MayLieAnywhere) {
  for (const AttentionCase& c : parse_attention_cases({short_sequences(",h8,d64")})) {
    AttentionRun run(c);
    for (std::vector<int32_t>* offsets : {&run.cu_seqlens_q, &run.cu_seqlens_k}) {
      const int32_t last = offsets->back();
      for (int32_t& offset : *offsets) offset = std::min(offset + 5, last - 9);
      (*offsets)[30] = (*offsets)[25];
    }
    run.cu_seqlens_k[45] = 2000000000;
    run.forward();
    EXPECT_EQ(run.damaged_output(), "") << to_text(c);
    for (int64_t query : {int64_t{0}, int64_t{4}, c.seqlen_q - 9, c.seqlen_q - 1}) {
      EXPECT_EQ(run.lse.get({0, 0, 0, query, 0}), -INFINITY) << to_text(c) << " query " << query;
      EXPECT_EQ(run.out.get({0, query, 0, 0, 3}), 0) << to_text(c) << " query " << query;
    }
  }
}

// seqused_k: keys behind the used ones hold NaN and get zero gradients.
INSTANTIATE_TEST_SUITE_P(Gaps, AttentionCases,
                         cases({"attention:*,q4+9,k40+40,used7+33,h2,d32",
                                "attention:*,q1+1+1,k64+64+64,used64+0+1,h4,kv2,d64",
                                "attention:*,q20+30,k50+50,used40+20,h2,d32,causal_br",
                                "attention:bf16,q70+70,k90+90,used65+90,h2,d64,band20_0_br"}),
                         test_name);

// Offsets that point outside of the tensors are clamped: the guard pages around each tensor stay untouched.
TEST(PackedOffsets, AreClampedToTheTensors) {
  for (const AttentionCase& c : parse_attention_cases(
           {"attention:*,q5+6+7,k10+20+30,h2,d32", "attention:*,q1+1+1,k64+64+64,used64+20+30,h4,kv2,d64"})) {
    AttentionRun run(c);
    run.cu_seqlens_q = {-3, 4, 1000000, 2000000000};
    run.cu_seqlens_k = {-100, 7, 5000, 2000000000};
    run.run();
    EXPECT_EQ(run.damaged_output(), "") << to_text(c);
  }
}

}  // namespace xformers::testing
