#include <algorithm>
#include <cstdio>
#include <iterator>
#include <optional>

#include "xformers/kernels/base/check.h"
#include "xformers/ops/context_parallel/predict.h"

namespace xformers::parallel {
namespace {

constexpr char kPlan[] = "plan_context_parallel";
constexpr double kMissed = 0.02;  // a gain below this is within what predictions miss

const char* const kLayoutNames[] = {"contiguous", "zigzag", "documents", "striped"};

std::string line_of(const ContextProblem& problem, double seconds, bool is_chosen) {
  char text[120];
  std::string name = method_name(problem);
  if (name == "hybrid") {
    name += " of " + std::to_string(problem.team_size) + ", " +
            (problem.method == Method::kRing ? "ring" : "all_gather") + " between";
  }
  std::snprintf(text, sizeof text, "%s %s, %s: predicted %.3g ms\n", is_chosen ? "*" : " ", name.c_str(),
                layout_name(problem.layout).c_str(), seconds * 1e3);
  return text;
}

// With one team nothing travels between teams: layouts and methods are then the same, and the first is taken.
bool is_as_wished(const ContextProblem& problem, const Wish& wish) {
  const bool is_alone = problem.teams() == 1, is_ring = problem.method == Method::kRing;
  if (wish.head_ranks > 0 && problem.team_size != wish.head_ranks) return false;
  if (wish.any_layout ? is_alone && problem.layout != Layout::kContiguous : problem.layout != wish.layout) return false;
  if (wish.any_method) return !(is_alone && is_ring);
  if (problem.ranks == 1) return is_ring == (wish.method == "ring") && wish.method != "hybrid";
  return wish.method == method_name(problem) && !(is_alone && is_ring);
}

}  // namespace

std::string layout_name(Layout layout) { return kLayoutNames[static_cast<int64_t>(layout)]; }

Layout layout_of(std::string_view name) {
  std::string names;
  for (int64_t i = 0; i < static_cast<int64_t>(std::size(kLayoutNames)); ++i) {
    if (name == kLayoutNames[i]) return static_cast<Layout>(i);
    names += std::string(i > 0 ? ", " : "") + kLayoutNames[i];
  }
  fail({kPlan, "layout", "'" + std::string(name) + "'", "'auto' or one of " + names, "leave it out"});
}

std::string method_name(const ContextProblem& problem) {
  if (problem.team_size == 1) return problem.method == Method::kRing ? "ring" : "all_gather";
  return problem.team_size == problem.ranks ? "ulysses" : "hybrid";
}

Chosen choose_context(ContextProblem problem, const Wish& wish, const Workload& workload, const Machine& machine) {
  const std::string heads = std::to_string(workload.heads), key_heads = std::to_string(workload.key_heads);
  if (workload.key_heads < 1 || workload.heads % workload.key_heads != 0) {
    fail({kPlan, "num_heads", heads, "a multiple of num_heads_kv, " + key_heads, "pass the heads of the model"});
  }
  std::vector<ContextProblem> candidates;
  for (int64_t size = 1; size <= std::min(problem.ranks, workload.heads); ++size) {
    if (problem.ranks % size != 0) continue;
    for (const Method method : {Method::kAllGather, Method::kRing}) {
      for (const Layout layout : {Layout::kContiguous, Layout::kZigzag, Layout::kDocuments, Layout::kStriped}) {
        problem.method = method, problem.layout = layout, problem.team_size = size;
        if (is_as_wished(problem, wish)) candidates.push_back(problem);
      }
    }
  }
  if (candidates.empty()) {
    const std::string got =
        "'" + wish.method + "', of " + heads + " heads on " + std::to_string(problem.ranks) + " ranks";
    fail({kPlan, "method", wish.head_ranks > 0 ? got + " by " + std::to_string(wish.head_ranks) : got,
          "a head or more for each rank that shares them out: all of ulysses; of hybrid a divisor of the ranks between "
          "1 "
          "and their number",
          "use ring or all_gather"});
  }
  Chosen chosen;
  std::vector<double> seconds;
  std::optional<size_t> best;
  for (size_t i = 0; i < candidates.size(); ++i) {
    const ContextPlan plan(candidates[i]);
    Workload backward = workload;
    backward.backward = true;
    seconds.push_back(predict(plan, workload, machine).seconds + predict(plan, backward, machine).seconds);
    if (!best || seconds[i] < (1 - kMissed) * seconds[*best]) best = i;
  }
  for (size_t i = 0; i < candidates.size(); ++i) chosen.explanation += line_of(candidates[i], seconds[i], i == *best);
  chosen.problem = candidates[*best];
  chosen.seconds = seconds[*best];
  return chosen;
}

}  // namespace xformers::parallel
