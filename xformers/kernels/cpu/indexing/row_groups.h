// Which places of an index point to one row: sums over them have one owner, so threads never meet and the order of
// addition is fixed.
#pragma once

#include <cstdint>
#include <vector>

namespace xformers::cpu {

// places[begin[row]] ... places[begin[row + 1] - 1] are the i with index[i] == row, in rising order.
struct RowGroups {
  const int64_t* begin = nullptr;
  const int64_t* places = nullptr;
};

class RowGrouping {
 public:
  // index[i] in [0, rows).
  RowGrouping(const int64_t* index, int64_t count, int64_t rows) : begin_(rows + 1, 0), places_(count) {
    for (int64_t i = 0; i < count; ++i) ++begin_[index[i] + 1];
    for (int64_t row = 0; row < rows; ++row) begin_[row + 1] += begin_[row];
    std::vector<int64_t> next(begin_.begin(), begin_.end() - 1);
    for (int64_t i = 0; i < count; ++i) places_[next[index[i]]++] = i;
  }
  RowGroups groups() const { return {begin_.data(), places_.data()}; }

 private:
  std::vector<int64_t> begin_, places_;
};

}  // namespace xformers::cpu
