// Random small cases from fixed seeds: combinations that nobody thought of.
#include "tests/kernels/attention_check.h"
#include "tests/kernels/random_case.h"

namespace xformers::testing {

class RandomCases : public ::testing::TestWithParam<uint64_t> {};

TEST_P(RandomCases, MatchReference) { EXPECT_TRUE(matches_reference(random_case(GetParam()))); }

// The case that a failure prints is the case that --case= runs.
TEST_P(RandomCases, SurviveTheirTextForm) {
  const std::string text = to_text(random_case(GetParam()));
  EXPECT_EQ(to_text(parse_attention_case(text)), text);
}

INSTANTIATE_TEST_SUITE_P(Seeds, RandomCases, ::testing::Range<uint64_t>(1, 201));

}  // namespace xformers::testing
