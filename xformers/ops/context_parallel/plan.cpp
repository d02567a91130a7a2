#include "xformers/ops/context_parallel/plan.h"

#include <algorithm>

#include "xformers/ops/context_parallel/layout.h"

namespace xformers::parallel {
namespace {

constexpr size_t kNumbers = 7;  // of a flat problem, before its documents

bool rows_meet(const std::vector<KeyStep>& steps) {
  std::vector<Range> rows;
  for (const KeyStep& step : steps) {
    for (const Piece& piece : step.pieces) rows.push_back(piece.rows);
  }
  std::sort(rows.begin(), rows.end(), [](const Range& a, const Range& b) { return a.begin < b.begin; });
  for (size_t i = 1; i < rows.size(); ++i) {
    if (rows[i].begin < rows[i - 1].end) return true;
  }
  return false;
}

std::string text_of(const Run& run) {
  const std::string first = std::to_string(run.begin);
  if (run.stride == 1) return first + "-" + std::to_string(run.begin + run.count);
  return first + "-" + std::to_string(run.token(run.count - 1) + 1) + " by " + std::to_string(run.stride);
}

}  // namespace

std::vector<int64_t> ContextProblem::flat() const {
  std::vector<int64_t> numbers{
      seqlen, ranks, window_left, window_right, static_cast<int64_t>(layout), static_cast<int64_t>(method), team_size};
  numbers.insert(numbers.end(), documents.begin(), documents.end());
  return numbers;
}

ContextProblem ContextProblem::from_flat(const std::vector<int64_t>& numbers) {
  ContextProblem problem{numbers.at(0), numbers.at(1), numbers.at(2), numbers.at(3),
                         static_cast<Layout>(numbers.at(4))};
  problem.method = static_cast<Method>(numbers.at(5));
  problem.team_size = numbers.at(6);
  problem.documents.assign(numbers.begin() + kNumbers, numbers.end());
  return problem;
}

int64_t TeamPlan::area() const {
  int64_t area = 0;
  for (const KeyStep& step : steps) {
    for (const Piece& piece : step.pieces) area += piece.area;
  }
  return area;
}

int64_t TeamPlan::calls() const {
  int64_t calls = 0;
  for (const KeyStep& step : steps) calls += static_cast<int64_t>(step.pieces.size());
  return calls;
}

int64_t TeamPlan::rows_received(int64_t team) const {
  int64_t rows = 0;
  for (const KeyStep& step : steps) {
    for (const Transfer& arrival : step.arrivals) rows += arrival.team == team ? 0 : size_of(arrival.rows);
  }
  return rows;
}

ContextPlan::ContextPlan(ContextProblem problem_arg)
    : problem(std::move(problem_arg)), owned(owners(problem)), visibility_(visibility_of(problem)) {
  if (problem.method != Method::kRing) return;
  const int64_t teams = problem.teams();
  for (int64_t distance = 1; distance < teams; ++distance) {
    for (int64_t from = 0; from < teams; ++from) {
      if (visible_rows(from, (from + distance) % teams).empty()) continue;
      distances_.push_back(distance);
      break;
    }
  }
}

std::vector<Range> ContextPlan::visible_rows(int64_t from, int64_t to) const {
  std::vector<Range> rows;
  for (const Piece& piece : visible_pieces(visibility_, owned[to], owned[from])) rows.push_back(piece.keys);
  return united(std::move(rows));
}

TeamPlan ContextPlan::team(int64_t team) const {
  TeamPlan plan{owned.at(team), {}, false};
  if (problem.method == Method::kAllGather && problem.teams() > 1) {
    plan.steps.push_back(whole_step(team));
  } else {
    KeyStep& own = plan.steps.emplace_back();
    own.keys = plan.owned;
    own.is_local = true;
    for (const int64_t distance : distances_) plan.steps.push_back(ring_step(team, distance));
  }
  for (KeyStep& step : plan.steps) step.pieces = visible_pieces(visibility_, plan.owned, step.keys);
  plan.merges = rows_meet(plan.steps);
  return plan;
}

// What arrives lies in the order of tokens, so that a query's keys are neighbours; of strided runs, by team.
KeyStep ContextPlan::whole_step(int64_t team) const {
  struct Arrived {
    Run run;
    Range rows;
  };
  KeyStep step;
  std::vector<Arrived> order;
  int64_t row = 0;
  for (int64_t other = 0; other < problem.teams(); ++other) {
    step.sends.push_back({other, visible_rows(team, other)});
    step.arrivals.push_back({other, visible_rows(other, team)});
    for (const Range& rows : step.arrivals.back().rows) {
      for (const Run& run : part_of(owned[other], rows)) {
        order.push_back({run, {row, row + run.count}});
        row += run.count;
      }
    }
  }
  const bool in_order = problem.layout != Layout::kStriped;
  if (in_order) {
    std::sort(order.begin(), order.end(), [](const Arrived& a, const Arrived& b) { return a.run.begin < b.run.begin; });
  }
  int64_t place = 0;
  for (const Arrived& each : order) {
    if (in_order) step.placed.push_back({each.rows, place});
    place += each.run.count;
    Run* last = step.keys.empty() ? nullptr : &step.keys.back();
    if (in_order && last != nullptr && last->token(last->count) == each.run.begin) {
      last->count += each.run.count;
    } else {
      step.keys.push_back(each.run);
    }
  }
  return step;
}

KeyStep ContextPlan::ring_step(int64_t team, int64_t distance) const {
  const int64_t teams = problem.teams(), from = (team - distance + teams) % teams, to = (team + distance) % teams;
  KeyStep step;
  step.sends.push_back({to, visible_rows(team, to)});
  step.arrivals.push_back({from, visible_rows(from, team)});
  for (const Range& rows : step.arrivals.back().rows) {
    const std::vector<Run> runs = part_of(owned[from], rows);
    step.keys.insert(step.keys.end(), runs.begin(), runs.end());
  }
  return step;
}

Range ContextPlan::rows_of(int64_t rank) const {
  const int64_t rows = size_of(owned.at(rank / problem.team_size)), member = rank % problem.team_size;
  return {rows * member / problem.team_size, rows * (member + 1) / problem.team_size};
}

std::vector<Run> ContextPlan::tokens_of(int64_t rank) const {
  return part_of(owned.at(rank / problem.team_size), rows_of(rank));
}

std::string ContextPlan::text() const {
  std::string text;
  for (int64_t t = 0; t < problem.teams(); ++t) {
    const TeamPlan plan = team(t);
    for (int64_t rank = t * problem.team_size; rank < (t + 1) * problem.team_size; ++rank) {
      text += "rank " + std::to_string(rank) + ": tokens";
      for (const Run& run : tokens_of(rank)) text += " " + text_of(run);
      if (problem.team_size > 1) text += ", a share of the heads of team " + std::to_string(t);
      text += ", " + std::to_string(plan.steps.size()) + (plan.steps.size() == 1 ? " step, " : " steps, ") +
              std::to_string(plan.calls()) + " calls, visible area " + std::to_string(plan.area()) + ", receives " +
              std::to_string(plan.rows_received(t)) + " rows\n";
    }
  }
  return text;
}

}  // namespace xformers::parallel
