#include <algorithm>
#include <cstdio>
#include <iterator>

#include "xformers/kernels/base/check.h"
#include "xformers/ops/context_parallel/predict.h"

namespace xformers::parallel {
namespace {

constexpr char kPlan[] = "plan_context_parallel";
constexpr double kMissed = 0.02;  // a difference below this is within what predictions miss

const char* const kLayoutNames[] = {"contiguous", "zigzag", "documents", "striped"};

std::string line_of(const ContextProblem& problem, double seconds, double bytes, bool is_chosen) {
  char text[160];
  std::string name = method_name(problem);
  if (name == "hybrid") {
    name += " of " + std::to_string(problem.team_size) + ", " +
            (problem.method == Method::kRing ? "ring" : "all_gather") + " between";
  }
  std::snprintf(text, sizeof text, "%s %s, %s: predicted %.3g ms, keys of others %.3g MiB\n", is_chosen ? "*" : " ",
                name.c_str(), layout_name(problem.layout).c_str(), seconds * 1e3, bytes / (1 << 20));
  return text;
}

// Of any layout: documents are balanced by their pieces, one document by stripes, which cut a call per document and
// step.
bool is_worth_trying(const ContextProblem& problem) {
  const Layout other = problem.documents.size() > 2 ? Layout::kStriped : Layout::kDocuments;
  return problem.layout != other;
}

// With one team nothing travels between teams: layouts and methods are then the same, and the first is taken.
bool is_as_wished(const ContextProblem& problem, const Wish& wish) {
  const bool is_alone = problem.teams() == 1, is_ring = problem.method == Method::kRing;
  if (wish.head_ranks > 0 && problem.team_size != wish.head_ranks) return false;
  if (!wish.any_layout && problem.layout != wish.layout) return false;
  if (wish.any_layout && (is_alone ? problem.layout != Layout::kContiguous : !is_worth_trying(problem))) return false;
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
  std::vector<double> seconds, bytes;
  for (const ContextProblem& candidate : candidates) {
    const Predictions both = predict(ContextPlan(candidate), workload, machine);
    seconds.push_back(both.forward.seconds + both.backward.seconds);
    bytes.push_back(both.forward.key_bytes);
  }
  const double least = *std::min_element(seconds.begin(), seconds.end());
  size_t best = candidates.size();
  for (size_t i = 0; i < candidates.size(); ++i) {
    if (seconds[i] > (1 + kMissed) * least) continue;
    if (best == candidates.size() || bytes[i] < bytes[best]) best = i;
  }
  Chosen chosen{candidates[best], seconds[best], ""};
  for (size_t i = 0; i < candidates.size(); ++i) {
    chosen.explanation += line_of(candidates[i], seconds[i], bytes[i], i == best);
  }
  return chosen;
}

}  // namespace xformers::parallel
