#include "xformers/ops/context_parallel/layout.h"

#include <algorithm>

namespace xformers::parallel {
namespace {

constexpr int64_t kPiecesPerTeam = 8;  // of the layout by documents: enough for areas to balance within a few percent

// Pieces of documents, the one with the most to see first, each to the team with the least so far.
std::vector<std::vector<Run>> balanced(const ContextProblem& problem, const Visibility& visibility) {
  struct Part {
    Run run;
    int64_t area = 0;
  };
  const int64_t teams = problem.teams(), count = kPiecesPerTeam * teams;
  const int64_t longest = std::max<int64_t>(1, (problem.seqlen + count - 1) / count);
  std::vector<Part> parts;
  for (size_t d = 0; d + 1 < visibility.documents.size(); ++d) {
    const int64_t begin = visibility.documents[d], size = visibility.documents[d + 1] - begin;
    const int64_t cuts = (size + longest - 1) / longest;
    for (int64_t i = 0; i < cuts; ++i) {
      const Run run{begin + size * i / cuts, size * (i + 1) / cuts - size * i / cuts};
      const std::vector<Piece> seen = visible_pieces(visibility, {run}, {{begin, size}});
      parts.push_back({run, seen.empty() ? 0 : seen.front().area});
    }
  }
  std::stable_sort(parts.begin(), parts.end(), [](const Part& a, const Part& b) { return a.area > b.area; });
  std::vector<int64_t> area(teams);
  std::vector<std::vector<Run>> owned(teams);
  for (const Part& part : parts) {
    const auto least = std::min_element(area.begin(), area.end());
    *least += part.area;
    owned[least - area.begin()].push_back(part.run);
  }
  for (auto& runs : owned) {
    std::sort(runs.begin(), runs.end(), [](const Run& a, const Run& b) { return a.begin < b.begin; });
  }
  return owned;
}

}  // namespace

Visibility visibility_of(const ContextProblem& problem) {
  const int64_t all = problem.seqlen;
  return {problem.window_left < 0 ? all : std::min(problem.window_left, all),
          problem.window_right < 0 ? all : std::min(problem.window_right, all),
          problem.documents.empty() ? std::vector<int64_t>{0, all} : problem.documents};
}

std::vector<std::vector<Run>> owners(const ContextProblem& problem) {
  const int64_t teams = problem.teams(), n = problem.seqlen;
  if (problem.layout == Layout::kDocuments) return balanced(problem, visibility_of(problem));
  const auto chunk = [&](int64_t i, int64_t count) { return Run{n * i / count, n * (i + 1) / count - n * i / count}; };
  std::vector<std::vector<Run>> owned(teams);
  for (int64_t t = 0; t < teams; ++t) {
    if (problem.layout == Layout::kContiguous) owned[t] = {chunk(t, teams)};
    if (problem.layout == Layout::kZigzag) owned[t] = {chunk(t, 2 * teams), chunk(2 * teams - 1 - t, 2 * teams)};
    if (problem.layout == Layout::kStriped) owned[t] = {{t, (n - t + teams - 1) / teams, teams}};
    std::erase_if(owned[t], [](const Run& run) { return run.count <= 0; });
  }
  return owned;
}

}  // namespace xformers::parallel
