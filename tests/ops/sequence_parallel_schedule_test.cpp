// Schedules of spread products, for every number of ranks to 64, run step by step without any process.
#include <gtest/gtest.h>

#include <set>

#include "xformers/ops/sequence_parallel/schedule.h"

namespace xformers::parallel {
namespace {

constexpr int64_t kRanks = 64;

class Schedule : public testing::TestWithParam<Pattern> {};
INSTANTIATE_TEST_SUITE_P(Both, Schedule, testing::Values(Pattern::kGather, Pattern::kScatter),
                         [](const auto& info) { return info.param == Pattern::kGather ? "gather" : "scatter"; });

// Transfers of step i of all ranks are one exchange: who sends is expected by who receives.
TEST_P(Schedule, EveryPieceOnceAndNoMoreBytesThanNeeded) {
  for (int64_t ranks = 1; ranks <= kRanks; ++ranks) {
    std::vector<std::vector<Step>> all;
    for (int64_t rank = 0; rank < ranks; ++rank) all.push_back(overlapped_steps(GetParam(), ranks, rank));
    for (int64_t rank = 0; rank < ranks; ++rank) {
      ASSERT_EQ(all[rank].size(), ranks);
      std::set<int64_t> multiplied, sources;
      int64_t sent = 0;
      for (size_t i = 0; i < all[rank].size(); ++i) {
        const Step& step = all[rank][i];
        multiplied.insert(step.rank);
        if (step.send_to < 0) {
          EXPECT_EQ(step.rank, rank);
          continue;
        }
        ++sent;
        sources.insert(step.receive_from);
        ASSERT_NE(step.send_to, rank);
        EXPECT_EQ(all[step.send_to][i].receive_from, rank);
        EXPECT_EQ(all[step.receive_from][i].send_to, rank);
        EXPECT_EQ(step.rank, GetParam() == Pattern::kGather ? step.receive_from : step.send_to);
      }
      EXPECT_EQ(multiplied.size(), ranks);
      EXPECT_EQ(sources.size(), ranks - 1);  // so nothing arrives twice
      EXPECT_EQ(sent, ranks - 1);            // a shard to each other rank: no schedule sends less
    }
  }
}

TEST_P(Schedule, OwnRowsAreMultipliedWithoutWaiting) {
  const std::vector<Step> steps = overlapped_steps(GetParam(), 5, 3);
  std::vector<int64_t> order;
  for (const Step& step : steps) order.push_back(step.rank);
  EXPECT_EQ(order, GetParam() == Pattern::kGather ? (std::vector<int64_t>{3, 2, 1, 0, 4})
                                                  : (std::vector<int64_t>{4, 0, 1, 2, 3}));
}

// Every rank does its steps in order; an exchange begins when all who take part have come to it.
TEST_P(Schedule, NobodyWaitsInACircle) {
  for (int64_t ranks = 2; ranks <= kRanks; ++ranks) {
    std::vector<std::vector<Step>> steps;
    for (int64_t rank = 0; rank < ranks; ++rank) steps.push_back(overlapped_steps(GetParam(), ranks, rank));
    std::vector<size_t> at(ranks, 0);
    for (bool moved = true; moved;) {
      moved = false;
      for (int64_t rank = 0; rank < ranks; ++rank) {
        if (at[rank] == steps[rank].size()) continue;
        const Step& step = steps[rank][at[rank]];
        if (step.send_to >= 0 && (at[step.send_to] < at[rank] || at[step.receive_from] < at[rank])) continue;
        ++at[rank];
        moved = true;
      }
    }
    for (const size_t done : at) ASSERT_EQ(done, ranks);
  }
}

TEST(ScheduleChoice, OverlapsWhatIsLargeAlone) {
  const Rates gpu = rates_of(true, 2);
  const SpreadProduct large{Pattern::kGather, 2, 4096, 8192, 3584, 2}, small{Pattern::kGather, 2, 32, 512, 512, 2};
  EXPECT_TRUE(choose(large, gpu).overlap);
  EXPECT_FALSE(choose(small, gpu).overlap);
  EXPECT_NE(choose(large, gpu).explain().find("overlapped: predicted"), std::string::npos);
  EXPECT_NE(choose(small, gpu).explain().find("one collective: predicted"), std::string::npos);
  for (const Pattern pattern : {Pattern::kGather, Pattern::kScatter}) {
    EXPECT_FALSE(choose({pattern, 1, 4096, 4096, 4096, 2}, gpu).overlap);
    for (int64_t ranks = 2; ranks <= 64; ++ranks) {
      const Choice choice = choose({pattern, ranks, 4096, 8192, 8192, 2}, gpu);
      const double products = 2.0 * static_cast<double>(ranks) * 4096 * 8192 * 8192 / gpu.flops;
      EXPECT_GE(choice.overlapped_seconds, products);  // nothing is faster than its products
      EXPECT_LT(choice.overlapped_seconds, choice.plain_seconds);
    }
  }
}

}  // namespace
}  // namespace xformers::parallel
