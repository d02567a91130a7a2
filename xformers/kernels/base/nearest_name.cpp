#include "xformers/kernels/base/nearest_name.h"

#include <algorithm>
#include <numeric>

namespace xformers {
namespace {

// How many characters have to be put in, taken out or replaced.
size_t distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 0; i < a.size(); ++i) {
    size_t diagonal = row[0]++;
    for (size_t j = 0; j < b.size(); ++j) {
      const size_t replaced = diagonal + (a[i] != b[j]);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replaced, diagonal + 1, row[j] + 1});
    }
  }
  return row.back();
}

}  // namespace

std::string_view nearest_name(std::string_view name, const std::vector<std::string_view>& names) {
  std::string_view nearest;
  for (std::string_view other : names) {
    if (nearest.empty() || distance(name, other) < distance(name, nearest)) nearest = other;
  }
  return nearest;
}

}  // namespace xformers
