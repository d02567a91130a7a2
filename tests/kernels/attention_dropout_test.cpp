// Dropout: the stream of base/philox.h, the same in forward and backward and on every tiling.
#include "tests/kernels/attention_check.h"
#include "xformers/kernels/base/philox.h"

namespace xformers::testing {

// Known answers that the authors of Random123 publish for Philox4x32-10.
TEST(Philox, KnownAnswers) {
  const auto expect = [](const PhiloxWords& got, const PhiloxWords& expected) {
    for (int i = 0; i < 4; ++i) EXPECT_EQ(got.word[i], expected.word[i]) << "word " << i;
  };
  const uint32_t ones = 0xffffffffu;
  expect(philox4x32({{0, 0, 0, 0}}, 0, 0), {{0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u}});
  expect(philox4x32({{ones, ones, ones, ones}}, ones, ones), {{0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu}});
  expect(philox4x32({{0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u}}, 0xa4093822u, 0x299f31d0u),
         {{0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u}});
}

TEST(Philox, DropsAboutTheAskedFraction) {
  int dropped = 0;
  constexpr int kDraws = 100000;
  for (int key = 0; key < kDraws; ++key) dropped += dropout_draw(7, 11, 3, 5, key) < drop_threshold(0.3);
  EXPECT_NEAR(dropped, 0.3 * kDraws, 600);  // four standard deviations
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
