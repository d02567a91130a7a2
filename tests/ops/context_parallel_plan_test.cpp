// Plans of attention over spread sequences: each visible (query, key) pair once, from keys that are there.
#include <gtest/gtest.h>

#include <random>

#include "xformers/ops/context_parallel/plan.h"

namespace xformers::parallel {
namespace {

bool visible(const ContextProblem& p, int64_t i, int64_t j) {
  if (p.window_left >= 0 && j < i - p.window_left) return false;
  if (p.window_right >= 0 && j > i + p.window_right) return false;
  for (size_t d = 0; d + 1 < p.documents.size(); ++d) {
    const auto within = [&](int64_t x) { return x >= p.documents[d] && x < p.documents[d + 1]; };
    if (within(i) != within(j)) return false;
  }
  return true;
}

void check(const ContextProblem& problem) {
  const int64_t n = problem.seqlen;
  const ContextPlan plan = plan_context(problem);
  ASSERT_EQ(plan.ranks.size(), problem.ranks);
  std::vector<int> owners(n), computed(n * n);
  for (int64_t r = 0; r < problem.ranks; ++r) {
    const RankPlan& rank = plan.ranks[r];
    for (const Range& range : rank.owned) {
      for (int64_t i = range.begin; i < range.end; ++i) ++owners[i];
    }
    std::vector<int> here(n), wanted(n), arrived(n);
    int64_t area = 0;
    for (const Range& range : rank.needed) {
      for (int64_t j = range.begin; j < range.end; ++j) here[j] = 1;
    }
    for (const Piece& piece : rank.pieces) {
      const int64_t shift = piece.keys.size() - piece.queries.size();
      for (int64_t i = 0; i < piece.queries.size(); ++i) {
        for (int64_t j = 0; j < piece.keys.size(); ++j) {
          if (piece.window_left >= 0 && j < i + shift - piece.window_left) continue;
          if (piece.window_right >= 0 && j > i + shift + piece.window_right) continue;
          ++computed[(piece.queries.begin + i) * n + piece.keys.begin + j];
          ++area;
          wanted[piece.keys.begin + j] = 1;
        }
      }
    }
    EXPECT_EQ(area, rank.area());
    EXPECT_EQ(here, wanted);  // what is sent is what somebody here sees
    for (int64_t from = 0; from < problem.ranks; ++from) {
      for (const Range& range : plan.sent(from, r)) {
        for (int64_t j = range.begin; j < range.end; ++j) ++arrived[j];
      }
    }
    EXPECT_EQ(arrived, here);
  }
  for (int64_t i = 0; i < n; ++i) {
    EXPECT_EQ(owners[i], 1);
    for (int64_t j = 0; j < n; ++j) ASSERT_EQ(computed[i * n + j], visible(problem, i, j)) << i << " " << j;
  }
  EXPECT_EQ(ContextProblem::from_flat(problem.flat()), problem);
}

constexpr Layout kLayouts[] = {Layout::kContiguous, Layout::kZigzag, Layout::kDocuments};

TEST(ContextPlan, EveryVisiblePairOnce) {
  std::mt19937 random(1);
  const auto number = [&](int64_t below) { return static_cast<int64_t>(random() % below); };
  for (int64_t ranks = 1; ranks <= 64; ranks += ranks < 9 ? 1 : 11) {
    for (int trial = 0; trial < 6; ++trial) {
      ContextProblem problem{number(70), ranks, trial % 2 ? number(20) : -1, trial % 3 ? number(12) : -1};
      if (trial == 4) problem.window_left = int64_t{1} << 60;
      if (trial > 2) {
        problem.documents = {0};
        while (problem.documents.back() < problem.seqlen) {
          problem.documents.push_back(std::min(problem.seqlen, problem.documents.back() + 1 + number(30)));
        }
      }
      for (const Layout layout : kLayouts) {
        problem.layout = layout;
        SCOPED_TRACE(plan_context(problem).text());
        check(problem);
        if (HasFailure()) return;
      }
    }
  }
}

double imbalance(const ContextProblem& problem) {
  const ContextPlan plan = plan_context(problem);
  int64_t most = 0, all = 0;
  for (const RankPlan& rank : plan.ranks) most = std::max(most, rank.area()), all += rank.area();
  return static_cast<double>(most) * static_cast<double>(problem.ranks) / static_cast<double>(all);
}

TEST(ContextPlan, WorkBalances) {
  ContextProblem causal{4096, 8, -1, 0, Layout::kZigzag};
  EXPECT_LT(imbalance(causal), 1.001);
  causal.layout = Layout::kContiguous;
  EXPECT_GT(imbalance(causal), 1.8);
  EXPECT_EQ(best_layout(causal), Layout::kZigzag);
  EXPECT_EQ(best_layout({4096, 8}), Layout::kContiguous);
  ContextProblem packed{131072, 2, -1, 0, Layout::kDocuments, {0}};
  std::mt19937 random(3);
  while (packed.documents.back() < packed.seqlen) {
    packed.documents.push_back(std::min<int64_t>(packed.seqlen, packed.documents.back() + 256 + random() % 16128));
  }
  EXPECT_LT(imbalance(packed), 1.03);
}

TEST(ContextPlan, AWindowMovesNoMoreThanItself) {
  const ContextPlan plan = plan_context({131072, 4, 4096, 0});
  EXPECT_EQ(plan.rows_received(0), 0);
  for (int64_t rank = 1; rank < 4; ++rank) EXPECT_EQ(plan.rows_received(rank), 4096);
}

}  // namespace
}  // namespace xformers::parallel
