#include "xformers/ops/context_parallel/runs.h"

#include <algorithm>

namespace xformers::parallel {
namespace {

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }  // a >= 0

}  // namespace

Range Run::within(const Range& tokens) const {
  const auto first_from = [&](int64_t token) {
    return token <= begin ? 0 : std::min(count, divide_up(token - begin, stride));
  };
  return {first_from(tokens.begin), first_from(tokens.end)};
}

std::vector<Run> part_of(const std::vector<Run>& runs, const Range& rows) {
  std::vector<Run> result;
  int64_t first = 0;
  for (const Run& run : runs) {
    const Range members{std::max<int64_t>(rows.begin - first, 0), std::min(rows.end - first, run.count)};
    if (members.begin < members.end) result.push_back(run.part(members));
    first += run.count;
  }
  return result;
}

int64_t size_of(const std::vector<Run>& runs) {
  int64_t rows = 0;
  for (const Run& run : runs) rows += run.count;
  return rows;
}

int64_t size_of(const std::vector<Range>& ranges) {
  int64_t rows = 0;
  for (const Range& range : ranges) rows += range.size();
  return rows;
}

std::vector<Range> united(std::vector<Range> ranges) {
  std::sort(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) { return a.begin < b.begin; });
  std::vector<Range> result;
  for (const Range& range : ranges) {
    if (!result.empty() && range.begin <= result.back().end) {
      result.back().end = std::max(result.back().end, range.end);
    } else {
      result.push_back(range);
    }
  }
  return result;
}

}  // namespace xformers::parallel
