// Sets of tokens and of rows, for plans of attention over spread sequences.
#pragma once

#include <cstdint>
#include <vector>

namespace xformers::parallel {

struct Range {
  int64_t begin = 0, end = 0;
  int64_t size() const { return end - begin; }
  friend bool operator==(const Range&, const Range&) = default;
};

// Tokens begin, begin + stride, ... of the whole sequence.
struct Run {
  int64_t begin = 0, count = 0, stride = 1;
  int64_t token(int64_t i) const { return begin + i * stride; }
  Run part(const Range& members) const { return {token(members.begin), members.size(), stride}; }
  Range within(const Range& tokens) const;  // its members that are there
  friend bool operator==(const Run&, const Run&) = default;
};

// The rows of `rows`, where those of runs are counted one run after another.
std::vector<Run> part_of(const std::vector<Run>& runs, const Range& rows);
int64_t size_of(const std::vector<Run>& runs);
int64_t size_of(const std::vector<Range>& ranges);

// Rising, apart.
std::vector<Range> united(std::vector<Range> ranges);

}  // namespace xformers::parallel
