// Dropout: the stream of base/philox.h, the same in forward and backward and on every tiling.
#include <cmath>
#include <set>
#include <vector>

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
  const PhiloxWords state = philox4x32<5>(pi, 0xa4093822u, 0x299f31d0u);  // rounds may be made in two parts
  expect_words(philox4x32<2>(state, 0xa4093822u, 0x299f31d0u, 5), philox4x32<7>(pi, 0xa4093822u, 0x299f31d0u));
}

TEST(Philox, Thresholds) {
  EXPECT_EQ(drop_threshold(0), 0u);
  EXPECT_EQ(drop_threshold(1e-12), 0u);
  EXPECT_EQ(drop_threshold(0.5), 32768u);
  EXPECT_EQ(drop_threshold(0.3), 19661u);
  EXPECT_EQ(drop_threshold(1 - 1e-9), 65535u);
  EXPECT_EQ(drop_threshold(1), 65536u);
}

// Every draw of eight bits against both thresholds of p, in each byte.
TEST(Philox, FourDrawsCompareAtOnce) {
  for (double p : {0.0, 0.001, 0.1, 0.3, 127.5 / 256, 0.5, 0.7, 0.999, 1 - 1e-15}) {
    const DropRule rule = drop_rule(p);
    const auto lower = static_cast<uint32_t>(p * 256);
    for (uint32_t more : {0u, 1u}) {
      for (uint32_t draw = 0; draw < 256; ++draw) {
        const uint32_t others = 0x9e3779b9u * draw;  // neighbours must not matter
        for (int byte = 0; byte < 4; ++byte) {
          const uint32_t word = (others & ~(0xffu << byte * 8)) | draw << byte * 8;
          const uint32_t kept = kept_bytes(word, rule.addend - more * 0x01010101u, rule.either);
          ASSERT_EQ(kept >> (byte * 8 + 7) & 1, draw >= lower + more) << p << ": draw " << draw << ", byte " << byte;
        }
      }
    }
  }
  EXPECT_EQ(drop_rule(0).chance, 0u);
  EXPECT_EQ(drop_rule(0.3).chance, 0xccccccccu + 1);  // 256 * 0.3 = 76.8
  EXPECT_EQ(drop_rule(1 - 1e-15).chance, 0xffffffffu);
}

// Over many seeds, the sixteen elements of a call and four of other calls are each dropped with probability p, and each
// two of them with p^2: counts stay within five standard deviations.
TEST(Philox, DropRatesOverSeeds) {
  constexpr int kSeeds = 40000, kElements = 20;
  constexpr struct {
    uint32_t query, key;
  } kElsewhere[] = {{1, 0}, {0, 1}, {32, 0}, {0, 32}};
  for (double p : {0.001, 0.1, 0.3, 0.5, 0.999}) {
    const DropRule rule = drop_rule(p);
    std::vector<double> dropped(kElements), both(kElements * kElements);
    for (uint64_t seed = 0; seed < kSeeds; ++seed) {
      const PhiloxKey philox = philox_key(seed * 0x9e3779b97f4a7c15u, seed % 5);
      bool drops[kElements];
      for (uint32_t i = 0; i < 16; ++i) drops[i] = !attention_keeps(philox, rule, 3, 5 + i / 4 * 8, 66 + i % 4 * 8);
      for (uint32_t i = 0; i < 4; ++i) {
        drops[16 + i] = !attention_keeps(philox, rule, 3, 5 + kElsewhere[i].query, 66 + kElsewhere[i].key);
      }
      for (int i = 0; i < kElements; ++i) {
        dropped[i] += drops[i];
        for (int j = 0; j < i; ++j) both[i * kElements + j] += drops[i] && drops[j];
      }
    }
    const auto near = [&](double count, double rate) {
      return std::abs(count - rate * kSeeds) <= 5 * std::sqrt(rate * (1 - rate) * kSeeds) + 1;
    };
    for (int i = 0; i < kElements; ++i) {
      EXPECT_TRUE(near(dropped[i], p)) << "p " << p << ", element " << i << ": " << dropped[i];
      for (int j = 0; j < i; ++j) {
        EXPECT_TRUE(near(both[i * kElements + j], p * p)) << "p " << p << ", elements " << i << " and " << j;
      }
    }
  }
}

// The mean over many elements tells 0.3 from 77 / 256, which eight bits alone would give.
TEST(Philox, DropsTheAskedFraction) {
  constexpr int kDraws = 1 << 22;
  const PhiloxKey philox = philox_key(7, 11);
  const DropRule rule = drop_rule(0.3);
  int attention = 0, matrix = 0;
  for (int i = 0; i < kDraws; ++i) {
    attention += !attention_keeps(philox, rule, 3, i / 2048, i % 2048);
    matrix += row_dropout_draw(philox, 5, i) < drop_threshold(0.3);
  }
  const double deviation = std::sqrt(0.21 * kDraws);
  ASSERT_GT((77.0 / 256 - 0.3) * kDraws, 3 * deviation);
  EXPECT_NEAR(attention, 0.3 * kDraws, 2.5 * deviation);
  EXPECT_NEAR(matrix, 0.3 * kDraws, 2.5 * deviation);
}

// Each element of 64 x 64 has a byte of a call of its own, as the calls say; and so have columns.
TEST(Philox, EveryElementHasItsOwnDraw) {
  std::set<uint64_t> elements, columns;
  const PhiloxKey philox = philox_key(7, 11);
  const DropRule rule = drop_rule(0.4);
  for (uint32_t call = 0; call < 256; ++call) {
    const uint32_t block_q = call / 128, class_q = call / 16 % 8, block_k = call / 8 % 2, class_k = call % 8;
    const KeptWords kept = attention_kept(philox, rule, 3, block_q, class_q, block_k, class_k);
    const PhiloxWords words = row_dropout_draws(philox, 5, call);
    for (uint32_t i = 0; i < 16; ++i) {
      const uint32_t query = block_q * 32 + class_q + i / 4 * 8, key = block_k * 32 + class_k + i % 4 * 8;
      EXPECT_EQ(attention_keeps(philox, rule, 3, query, key), (kept.word[i / 4] >> (i % 4 * 8 + 7)) & 1);
      elements.insert(query * 64 + key);
    }
    for (uint32_t i = 0; i < 8; ++i) {
      EXPECT_EQ(row_dropout_draw(philox, 5, call * 8 + i), half_word(words.word[i / 2], i % 2));
      columns.insert(call * 8 + i);
    }
  }
  EXPECT_EQ(elements.size(), 4096u);
  EXPECT_EQ(columns.size(), 2048u);
}

INSTANTIATE_TEST_SUITE_P(Dropout, AttentionCases,
                         cases({"attention:*,b2,q70,k83,h2,d32,p0.1",
                                "attention:*,q130,k131,h2,d64,p0.5,causal_br,dlse", "attention:*,q20,k30,h2,d16,p1",
                                "attention:*,q20,k30,h2,d16,p0.999", "attention:*,q5+9+0,k33+7+4,h2,d32,p0.4",
                                "attention:*,q1,k300,h4,kv2,d64,p0.25", "attention:*,q40,k50,h4,g2,d16,p0.3",
                                "attention:*,q100,k140,h2,d128,p0.1,causal_br", "attention:*,q70,k90,h2,d256,p0.3,dlse",
                                "attention:*,b2,q45,k67,h6,kv2,d64,p0.6", "attention:*,q33+64+7,k40+70+31,h2,d128,p0.2",
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
