#include "xformers/ops/context_parallel/carrier.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <array>
#include <mutex>

#include "xformers/ops/common/check.h"

namespace xformers::ops {
namespace {

using parallel::KeyStep;
using parallel::Placed;
using parallel::Range;
using parallel::Transfer;

at::Tensor rows_like(const at::Tensor& rows, int64_t count) {
  std::vector<int64_t> sizes = rows.sizes().vec();
  sizes[0] = count;
  return at::empty(sizes, rows.options());
}

at::Tensor taken(const at::Tensor& rows, const std::vector<Range>& ranges) {
  if (ranges.size() == 1) return rows.narrow(0, ranges[0].begin, ranges[0].size());
  std::vector<at::Tensor> parts{rows.narrow(0, 0, 0)};
  for (const Range& range : ranges) parts.push_back(rows.narrow(0, range.begin, range.size()));
  return at::cat(parts);
}

std::vector<Range> ranges_of(const std::vector<Transfer>& transfers) {
  std::vector<Range> ranges;
  for (const Transfer& transfer : transfers) ranges.insert(ranges.end(), transfer.rows.begin(), transfer.rows.end());
  return ranges;
}

}  // namespace

std::shared_ptr<const PlanOfTeam> plan_of(const std::vector<int64_t>& problem, int64_t rank) {
  constexpr size_t kKept = 4;
  static std::mutex mutex;
  static auto* kept = new std::array<std::shared_ptr<const PlanOfTeam>, kKept>();
  static size_t next = 0;
  const auto wanted = parallel::ContextProblem::from_flat(problem);
  const int64_t team = rank / wanted.team_size;
  const std::lock_guard<std::mutex> lock(mutex);
  for (const auto& each : *kept) {
    if (each && each->index == team && each->plan.problem == wanted) return each;
  }
  parallel::ContextPlan plan(wanted);
  parallel::TeamPlan of_team = plan.team(team);
  auto result = std::make_shared<const PlanOfTeam>(PlanOfTeam{std::move(plan), team, std::move(of_team)});
  (*kept)[next++ % kKept] = result;
  return result;
}

Carrier::Carrier(const char* operation, std::string_view group_name, const std::vector<int64_t>& problem)
    : group(operation, group_name) {
  const int64_t ranks = parallel::ContextProblem::from_flat(problem).ranks;
  if (ranks != group.size) {
    Check(operation).fail("the plan's number of ranks", std::to_string(ranks),
                          std::to_string(group.size) + ", that of group '" + group.name + "'",
                          "plan with the group that you call with");
  }
  kept_ = plan_of(problem, group.rank);
}

std::vector<int64_t> Carrier::counts(const std::vector<Transfer>& transfers) const {
  std::vector<int64_t> result(group.size);
  for (const Transfer& transfer : transfers) {
    result[transfer.team * plan().problem.team_size + member()] = size_of(transfer.rows);
  }
  return result;
}

at::Tensor Carrier::exchange(const char* what, const at::Tensor& rows, const std::vector<int64_t>& receives,
                             const std::vector<int64_t>& sends) const {
  if (group.size == 1) return rows;
  const at::Tensor arrived = group.start_exchange_rows(what, rows, receives, sends);
  group.wait(what, arrived);
  return arrived;
}

Transit Carrier::start_keys(const char* what, const KeyStep& step, const at::Tensor& rows) const {
  if (step.is_local) return {rows, rows};
  Transit transit{taken(rows, ranges_of(step.sends)), {}};
  transit.arriving = group.start_exchange_rows(what, transit.sent, counts(step.arrivals), counts(step.sends));
  return transit;
}

at::Tensor Carrier::finish_keys(const char* what, const KeyStep& step, const Transit& transit) const {
  if (step.is_local) return transit.arriving;
  group.wait(what, transit.arriving);
  if (step.placed.empty()) return transit.arriving;
  const at::Tensor result = rows_like(transit.arriving, transit.arriving.size(0));
  for (const Placed& each : step.placed) {
    result.narrow(0, each.place, each.rows.size()).copy_(transit.arriving.narrow(0, each.rows.begin, each.rows.size()));
  }
  return result;
}

Transit Carrier::start_gradients(const char* what, const KeyStep& step, const at::Tensor& rows) const {
  if (step.is_local) return {rows, rows};
  Transit transit{rows, {}};
  if (!step.placed.empty()) {
    transit.sent = rows_like(rows, rows.size(0));
    for (const Placed& each : step.placed) {
      transit.sent.narrow(0, each.rows.begin, each.rows.size()).copy_(rows.narrow(0, each.place, each.rows.size()));
    }
  }
  transit.arriving = group.start_exchange_rows(what, transit.sent, counts(step.sends), counts(step.arrivals));
  return transit;
}

void Carrier::finish_gradients(const char* what, const KeyStep& step, const Transit& transit, at::Tensor& sum) const {
  if (step.is_local) {
    sum.add_(transit.arriving);
    return;
  }
  group.wait(what, transit.arriving);
  int64_t row = 0;
  for (const Range& range : ranges_of(step.sends)) {
    sum.narrow(0, range.begin, range.size()).add_(transit.arriving.narrow(0, row, range.size()));
    row += range.size();
  }
}

// Rows are [token, head] here, [batch, ...] each: members differ in how many heads they have.
at::Tensor Carrier::to_heads(const char* what, const at::Tensor& x, const std::vector<Range>& heads_of) const {
  const int64_t first = group.rank - member(), tokens = x.size(1), mine = heads_of[member()].size();
  const at::Tensor rows = x.movedim(0, 2);
  std::vector<int64_t> sends(group.size), receives(group.size), sizes = rows.sizes().vec();
  std::vector<at::Tensor> parts;
  int64_t all = 0;
  for (int64_t m = 0; m < static_cast<int64_t>(heads_of.size()); ++m) {
    sends[first + m] = tokens * heads_of[m].size();
    parts.push_back(
        rows.narrow(1, heads_of[m].begin, heads_of[m].size()).reshape({sends[first + m], sizes[2], sizes[3]}));
    receives[first + m] = plan().rows_of(first + m).size() * mine;
    all += plan().rows_of(first + m).size();
  }
  return exchange(what, at::cat(parts), receives, sends).view({all, mine, sizes[2], sizes[3]}).movedim(2, 0);
}

at::Tensor Carrier::from_heads(const char* what, const at::Tensor& x, const std::vector<Range>& heads_of,
                               int64_t heads) const {
  const int64_t first = group.rank - member(), tokens = local_tokens();
  const at::Tensor rows = x.movedim(0, 2);
  const int64_t batch = rows.size(2), width = rows.size(3);
  std::vector<int64_t> sends(group.size), receives(group.size);
  for (int64_t m = 0; m < static_cast<int64_t>(heads_of.size()); ++m) {
    sends[first + m] = plan().rows_of(first + m).size() * rows.size(1);
    receives[first + m] = tokens * heads_of[m].size();
  }
  const at::Tensor arrived = exchange(what, rows.reshape({rows.size(0) * rows.size(1), batch, width}), receives, sends);
  const at::Tensor result = at::zeros({batch, tokens, heads, width}, x.options());
  int64_t row = 0;
  for (int64_t m = 0; m < static_cast<int64_t>(heads_of.size()); ++m) {
    const int64_t size = heads_of[m].size(), count = receives[first + m];
    result.narrow(2, heads_of[m].begin, size)
        .add_(arrived.narrow(0, row, count).view({tokens, size, batch, width}).movedim(2, 0));
    row += count;
  }
  return result;
}

}  // namespace xformers::ops
