// Dropout: the stream of base/philox.h, the same in forward and backward and on every tiling.
#include <set>

#include "tests/kernels/attention_check.h"
#include "xformers/kernels/base/philox.h"

namespace xformers::testing {

void expect_words(const PhiloxWords& got, const PhiloxWords& expected) {
  for (int i = 0; i < 4; ++i) EXPECT_EQ(got.word[i], expected.word[i]) << "word " << i;
}

// Known answers that the authors of Random123 publish for Philox4x32-7 and Philox4x32-10.
TEST(Philox, KnownAnswers) {
  const uint32_t ones = 0xffffffffu;
  const PhiloxWords zeros{{0, 0, 0, 0}}, full{{ones, ones, ones, ones}};
  const PhiloxWords pi{{0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u}};
  expect_words(philox4x32<7>(zeros, 0, 0), {{0x5f6fb709u, 0x0d893f64u, 0x4f121f81u, 0x4f730a48u}});
  expect_words(philox4x32<7>(full, ones, ones), {{0x5207ddc2u, 0x45165e59u, 0x4d8ee751u, 0x8c52f662u}});
  expect_words(philox4x32<7>(pi, 0xa4093822u, 0x299f31d0u), {{0x4dfccabau, 0x190a87f0u, 0xc47362bau, 0xb6b5242au}});
  expect_words(philox4x32<10>(zeros, 0, 0), {{0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u}});
  expect_words(philox4x32<10>(full, ones, ones), {{0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu}});
  expect_words(philox4x32<10>(pi, 0xa4093822u, 0x299f31d0u), {{0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u}});
}

TEST(Philox, Thresholds) {
  EXPECT_EQ(drop_threshold(0), 0u);
  EXPECT_EQ(drop_threshold(1e-12), 0u);
  EXPECT_EQ(drop_threshold(0.5), 32768u);
  EXPECT_EQ(drop_threshold(0.3), 19661u);
  EXPECT_EQ(drop_threshold(1 - 1e-9), 65535u);
  EXPECT_EQ(drop_threshold(1), 65536u);
}

TEST(Philox, DropsAboutTheAskedFraction) {
  int attention = 0, matrix = 0;
  constexpr int kDraws = 100000;
  const PhiloxKey philox = philox_key(7, 11);
  for (int key = 0; key < kDraws; ++key) {
    attention += attention_draw(philox, 3, 5, key) < drop_threshold(0.3);
    matrix += row_dropout_draw(philox, 5, key) < drop_threshold(0.3);
  }
  EXPECT_NEAR(attention, 0.3 * kDraws, 600);  // four standard deviations
  EXPECT_NEAR(matrix, 0.3 * kDraws, 600);
}

// No two keys of a row, and no two columns, get the same half of the same call.
TEST(Philox, EveryElementHasItsOwnDraw) {
  std::set<uint64_t> attention, matrix;
  const PhiloxKey philox = philox_key(7, 11);
  for (uint32_t call = 0; call < 64; ++call) {
    const PhiloxWords keys = attention_draws(philox, 3, 5, call / 4, call % 4);
    const PhiloxWords columns = row_dropout_draws(philox, 5, call);
    for (uint32_t i = 0; i < 8; ++i) {
      const uint32_t key = call / 4 * 32 + call % 4 * 2 + i / 2 * 8 + i % 2, column = call * 8 + i;
      EXPECT_EQ(attention_draw(philox, 3, 5, key), half_word(keys.word[i / 2], i % 2));
      EXPECT_EQ(row_dropout_draw(philox, 5, column), half_word(columns.word[i / 2], i % 2));
      attention.insert(key);
      matrix.insert(column);
    }
  }
  EXPECT_EQ(attention.size(), 512u);
  EXPECT_EQ(matrix.size(), 512u);
}

INSTANTIATE_TEST_SUITE_P(Dropout, AttentionCases,
                         cases({"attention:*,b2,q70,k83,h2,d32,p0.1",
                                "attention:*,q130,k131,h2,d64,p0.5,causal_br,dlse", "attention:*,q20,k30,h2,d16,p1",
                                "attention:*,q20,k30,h2,d16,p0.999", "attention:*,q5+9+0,k33+7+4,h2,d32,p0.4",
                                "attention:*,q1,k300,h4,kv2,d64,p0.25", "attention:*,q40,k50,h4,g2,d16,p0.3",
                                "attention:fp32,q90,k90,h1,d8,band9_3,p0.2", "attention:fp32,q7,k9,h2,d8,p1e-12"}),
                         test_name);

// Another number of threads may sum in another order, but drops the same scores.
TEST(Dropout, SameMaskForEveryThreadCount) {
  AttentionCase c = parse_attention_case("attention:fp32,b2,q150,k140,h3,d16,p0.4");
  AttentionRun first(c);
  first.forward();
  for (int threads : {1, 3, 7}) {
    c.threads = threads;
    AttentionRun again(c);
    again.forward();
    const std::vector<double> expected = first.out.values(), got = again.out.values();
    for (size_t i = 0; i < got.size(); ++i)
      ASSERT_NEAR(got[i], expected[i], 1e-5) << threads << " threads, element " << i;
  }
}

}  // namespace xformers::testing
