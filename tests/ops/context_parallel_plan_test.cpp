// Plans of attention over spread sequences: each visible (query, key) pair once, from keys that are there, and nothing
// sent that nobody sees.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>

#include "xformers/kernels/base/error.h"
#include "xformers/ops/context_parallel/predict.h"

namespace xformers::parallel {
namespace {

constexpr Layout kLayouts[] = {Layout::kContiguous, Layout::kZigzag, Layout::kDocuments, Layout::kStriped};
constexpr Method kMethods[] = {Method::kAllGather, Method::kRing};

bool visible(const ContextProblem& p, int64_t i, int64_t j) {
  if (p.window_left >= 0 && j < i - p.window_left) return false;
  if (p.window_right >= 0 && j > i + p.window_right) return false;
  for (size_t d = 0; d + 1 < p.documents.size(); ++d) {
    const auto within = [&](int64_t x) { return x >= p.documents[d] && x < p.documents[d + 1]; };
    if (within(i) != within(j)) return false;
  }
  return true;
}

std::vector<int64_t> tokens_of(const std::vector<Run>& runs) {
  std::vector<int64_t> tokens;
  for (const Run& run : runs) {
    for (int64_t i = 0; i < run.count; ++i) tokens.push_back(run.begin + i * run.stride);
  }
  return tokens;
}

// The tokens of a step's keys as they lie after the transfers that the teams' plans say.
std::vector<int64_t> arrived(const ContextPlan& plan, const std::vector<TeamPlan>& teams, size_t step, int64_t team) {
  const KeyStep& mine = teams[team].steps[step];
  if (mine.is_local) return tokens_of(plan.owned[team]);
  std::vector<int64_t> tokens;
  for (const Transfer& arrival : mine.arrivals) {
    const KeyStep& theirs = teams[arrival.team].steps[step];
    const auto sent = std::find_if(theirs.sends.begin(), theirs.sends.end(),
                                   [&](const Transfer& transfer) { return transfer.team == team; });
    EXPECT_NE(sent, theirs.sends.end());
    EXPECT_EQ(sent->rows, arrival.rows);  // who waits for rows is sent them
    const std::vector<int64_t> all = tokens_of(plan.owned[arrival.team]);
    for (const Range& rows : arrival.rows)
      tokens.insert(tokens.end(), all.begin() + rows.begin, all.begin() + rows.end);
  }
  if (mine.placed.empty()) return tokens;
  std::vector<int64_t> placed(tokens.size(), -1);
  for (const Placed& each : mine.placed) {
    std::copy(tokens.begin() + each.rows.begin, tokens.begin() + each.rows.end, placed.begin() + each.place);
  }
  return placed;
}

void check(const ContextProblem& problem) {
  const int64_t n = problem.seqlen, count = problem.teams();
  const ContextPlan plan(problem);
  std::vector<TeamPlan> teams;
  for (int64_t t = 0; t < count; ++t) teams.push_back(plan.team(t));
  std::vector<int> owners(n), computed(n * n);
  for (int64_t rank = 0; rank < problem.ranks; ++rank) {
    for (const int64_t token : tokens_of(plan.tokens_of(rank))) ++owners[token];
  }
  for (int64_t t = 0; t < count; ++t) {
    const TeamPlan& team = teams[t];
    const std::vector<int64_t> queries = tokens_of(team.owned);
    std::map<int64_t, int> times, wanted;
    std::vector<int> pieces_of(queries.size());
    int64_t area = 0;
    ASSERT_EQ(team.steps.size(), teams[0].steps.size());
    for (size_t s = 0; s < team.steps.size(); ++s) {
      const std::vector<int64_t> keys = arrived(plan, teams, s, t);
      ASSERT_EQ(keys, tokens_of(team.steps[s].keys));
      for (const int64_t key : keys) ++times[key];
      for (const Piece& piece : team.steps[s].pieces) {
        const int64_t shift = piece.keys.size() - piece.rows.size();
        for (int64_t i = 0; i < piece.rows.size(); ++i) {
          ++pieces_of[piece.rows.begin + i];
          for (int64_t j = 0; j < piece.keys.size(); ++j) {
            if (piece.window_left >= 0 && j < i + shift - piece.window_left) continue;
            if (piece.window_right >= 0 && j > i + shift + piece.window_right) continue;
            const int64_t key = keys[piece.keys.begin + j];
            ++computed[queries[piece.rows.begin + i] * n + key];
            wanted[key] = 1;
            ++area;
          }
        }
      }
    }
    EXPECT_EQ(area, team.area());
    EXPECT_EQ(times, wanted);  // a key that somebody here sees comes once, no other
    EXPECT_EQ(team.merges, std::any_of(pieces_of.begin(), pieces_of.end(), [](int times) { return times > 1; }));
    EXPECT_TRUE(std::all_of(pieces_of.begin(), pieces_of.end(), [](int times) { return times > 0; }));
  }
  for (int64_t i = 0; i < n; ++i) {
    EXPECT_EQ(owners[i], 1);
    for (int64_t j = 0; j < n; ++j) ASSERT_EQ(computed[i * n + j], visible(problem, i, j)) << i << " " << j;
  }
  EXPECT_EQ(ContextProblem::from_flat(problem.flat()), problem);
}

TEST(ContextPlan, EveryVisiblePairOnce) {
  std::mt19937 random(1);
  const auto number = [&](int64_t below) { return static_cast<int64_t>(random() % below); };
  for (int64_t ranks = 1; ranks <= 64; ++ranks) {
    for (int trial = 0; trial < 6; ++trial) {
      ContextProblem problem{number(70), ranks, trial % 2 ? number(20) : -1, trial % 3 ? number(12) : -1};
      if (trial == 4) problem.window_left = int64_t{1} << 60;
      if (trial > 2) {
        problem.documents = {0};
        while (problem.documents.back() < problem.seqlen) {
          problem.documents.push_back(std::min(problem.seqlen, problem.documents.back() + number(30)));
        }
      }
      std::vector<int64_t> sizes;
      for (int64_t size = 1; size <= ranks; ++size) {
        if (ranks % size == 0) sizes.push_back(size);
      }
      for (const Layout layout : kLayouts) {
        for (const Method method : kMethods) {
          problem.layout = layout, problem.method = method;
          problem.team_size = trial == 0 ? 1 : sizes[number(static_cast<int64_t>(sizes.size()))];
          SCOPED_TRACE(ContextPlan(problem).text());
          check(problem);
          if (HasFailure()) return;
        }
      }
    }
  }
}

double imbalance(const ContextProblem& problem) {
  const ContextPlan plan(problem);
  int64_t most = 0, all = 0;
  for (int64_t t = 0; t < problem.teams(); ++t) {
    const int64_t area = plan.team(t).area();
    most = std::max(most, area), all += area;
  }
  return static_cast<double>(most) * static_cast<double>(problem.teams()) / static_cast<double>(all);
}

TEST(ContextPlan, WorkBalances) {
  ContextProblem causal{4096, 8, -1, 0, Layout::kZigzag};
  EXPECT_LT(imbalance(causal), 1.001);
  causal.layout = Layout::kStriped;
  EXPECT_LT(imbalance(causal), 1.002);
  causal.layout = Layout::kContiguous;
  EXPECT_GT(imbalance(causal), 1.8);
  ContextProblem packed{131072, 2, -1, 0, Layout::kDocuments, {0}};
  std::mt19937 random(3);
  while (packed.documents.back() < packed.seqlen) {
    packed.documents.push_back(std::min<int64_t>(packed.seqlen, packed.documents.back() + 256 + random() % 16128));
  }
  EXPECT_LT(imbalance(packed), 1.03);
}

TEST(ContextPlan, AWindowMovesNoMoreThanItself) {
  for (const Method method : kMethods) {
    const ContextPlan plan({131072, 4, 4096, 0, Layout::kContiguous, {}, method});
    EXPECT_EQ(plan.team(0).rows_received(0), 0);
    for (int64_t rank = 1; rank < 4; ++rank) EXPECT_EQ(plan.team(rank).rows_received(rank), 4096);
    // A ring does not go round for keys that nobody sees.
    EXPECT_EQ(plan.team(0).steps.size(), method == Method::kRing ? 2 : 1);
  }
}

TEST(ContextPlan, FewCalls) {
  // A step of a ring is one call: of zigzag chunks one half of the queries, or of the keys, is seen by nobody.
  const ContextPlan zigzag({4096, 8, -1, 0, Layout::kZigzag, {}, Method::kRing});
  const ContextPlan striped({4096, 8, 512, 0, Layout::kStriped, {}, Method::kRing});
  for (int64_t rank = 0; rank < 8; ++rank) {
    EXPECT_EQ(zigzag.team(rank).calls(), 9);
    EXPECT_EQ(striped.team(rank).calls(), 8);
  }
}

TEST(HeadShare, EveryQueryHeadOnceWithItsKeyHead) {
  for (int64_t key_heads = 1; key_heads <= 6; ++key_heads) {
    for (int64_t shared = 1; shared <= 5; ++shared) {
      for (int64_t size = 1; size <= key_heads * shared; ++size) {
        const HeadShare share{key_heads * shared, key_heads, size};
        int64_t next = 0;
        for (int64_t member = 0; member < size; ++member) {
          const Range queries = share.queries(member), keys = share.keys(member);
          EXPECT_EQ(queries.begin, next);
          EXPECT_GE(queries.size(), 1);
          next = queries.end;
          EXPECT_EQ(keys.begin, queries.begin / shared);
          EXPECT_EQ(keys.end, (queries.end - 1) / shared + 1);
          std::map<int64_t, int> readers;
          for (int64_t head = queries.begin; head < queries.end; ++head) ++readers[head / shared];
          const bool even = std::all_of(readers.begin(), readers.end(),
                                        [&](const auto& each) { return each.second == readers.begin()->second; });
          const bool divides = key_heads % size == 0 || size % key_heads == 0;
          EXPECT_TRUE(share.is_even(member) ? even : !divides) << key_heads << " " << shared << " " << size;
        }
        EXPECT_EQ(next, share.heads);
      }
    }
  }
}

// ---- predictions ----
constexpr Machine kMachine{8, 1e12, 1e9, 1e8, 1e-5, 3e-5, 1e-6};

TEST(ContextPrediction, OneRankIsItsProducts) {
  const Workload workload{2, 4, 4, 16};
  const Prediction one = predict(ContextPlan({1000, 1}), workload, kMachine).forward;
  const double products = 4.0 * 2 * 4 * 16 * 1000 * 1000 / 1e12;
  EXPECT_NEAR(one.ideal_seconds, products, 1e-12);
  EXPECT_NEAR(one.seconds, products + 1e-6, 1e-12);
  EXPECT_EQ(one.bytes_received, 0);
}

TEST(ContextPrediction, ARingHidesWhatAGatherWaitsFor) {
  const Workload workload{1, 4, 4, 64};
  const ContextPlan gather({8192, 2}), ring({8192, 2, -1, -1, Layout::kContiguous, {}, Method::kRing});
  const Prediction waits = predict(gather, workload, kMachine).forward,
                   hides = predict(ring, workload, kMachine).forward;
  const double bytes = 4096.0 * 2 * 4 * 64 * 2, transfer = 1e-5 + bytes / 1e9;
  EXPECT_EQ(waits.bytes_received, bytes);
  EXPECT_EQ(hides.bytes_received, bytes);
  EXPECT_NEAR(waits.seconds, waits.ideal_seconds + transfer + 1e-6, 1e-9);
  EXPECT_NEAR(hides.seconds, std::max(hides.ideal_seconds / 2 + 1e-6, transfer) + hides.ideal_seconds / 2 + 1e-6, 1e-9);
}

TEST(ContextPrediction, ARingHoldsTwoChunks) {
  const Workload workload{1, 4, 2, 64};
  const double row = 2.0 * 2 * 64 * 2;
  const ContextPlan gather({8192, 8}), ring({8192, 8, -1, -1, Layout::kContiguous, {}, Method::kRing});
  EXPECT_EQ(predict(ring, workload, kMachine).forward.key_bytes, 2 * 1024 * row);
  EXPECT_EQ(predict(gather, workload, kMachine).forward.key_bytes, 7 * 1024 * row);
  // One key head here of the tokens of all ranks.
  const ContextPlan heads({8192, 4, -1, -1, Layout::kContiguous, {}, Method::kAllGather, 4});
  EXPECT_EQ(predict(heads, workload, kMachine).forward.key_bytes, 8192 * row / 2);
}

TEST(ContextPrediction, BetweenHostsTheNetworkCounts) {
  const Workload workload{1, 4, 4, 64};
  Machine apart = kMachine;
  apart.ranks_per_host = 1;
  const ContextPlan plan({8192, 2});
  const double bytes = 4096.0 * 2 * 4 * 64 * 2;
  EXPECT_NEAR(predict(plan, workload, apart).forward.seconds - predict(plan, workload, kMachine).forward.seconds,
              2e-5 + bytes / 1e8 - bytes / 1e9, 1e-9);
}

TEST(ContextChoice, TakesWhatIsWishedOrTheFastest) {
  const Workload workload{1, 16, 16, 128};
  const Machine gpus = machine_of(true);
  const Chosen any = choose_context({131072, 8, -1, 0}, {}, workload, gpus);
  EXPECT_NE(any.explanation.find("* " + method_name(any.problem)), std::string::npos);
  Wish wish;
  wish.any_method = false;
  wish.method = "ring";
  EXPECT_NE(choose_context({131072, 8, -1, 0}, wish, workload, gpus).problem.layout, Layout::kContiguous);
  EXPECT_EQ(choose_context({131072, 8}, wish, workload, gpus).problem.layout, Layout::kContiguous);
  for (const char* method : {"all_gather", "ring", "ulysses", "hybrid"}) {
    wish.method = method;
    EXPECT_EQ(method_name(choose_context({4096, 8, -1, 0}, wish, workload, gpus).problem), method);
  }
  wish.head_ranks = 4;
  EXPECT_EQ(choose_context({4096, 8, -1, 0}, wish, workload, gpus).problem.team_size, 4);
  wish.head_ranks = 3;
  EXPECT_THROW(choose_context({4096, 8, -1, 0}, wish, workload, gpus), Error);
  wish = {};
  wish.any_layout = false;
  wish.layout = Layout::kStriped;
  EXPECT_EQ(choose_context({4096, 8, -1, 0}, wish, workload, gpus).problem.layout, Layout::kStriped);
}

}  // namespace
}  // namespace xformers::parallel
