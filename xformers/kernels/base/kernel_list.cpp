#include "xformers/kernels/base/kernel_list.h"

#include <cstdlib>
#include <numeric>

namespace xformers {
namespace {

std::vector<std::string_view>& all_names() {
  static std::vector<std::string_view> names;
  return names;
}

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

void KernelNames::add(std::string_view name) { all_names().push_back(name); }

std::string_view forced_kernel() {
  const char* const setting = std::getenv("XFORMERS_KERNEL");
  const std::string_view forced = setting ? setting : "";
  const std::vector<std::string_view>& names = all_names();
  if (forced.empty() || std::find(names.begin(), names.end(), forced) != names.end()) return forced;
  std::string_view nearest;
  std::string report;
  for (std::string_view name : names) {
    if (nearest.empty() || distance(forced, name) < distance(forced, nearest)) nearest = name;
    report += "\n  " + std::string(name);
  }
  throw Error("attention: XFORMERS_KERNEL is " + std::string(forced) +
              ", expected the name of a kernel.  Fix: the nearest is " + std::string(nearest) +
              "; all that there are:" + report);
}

}  // namespace xformers
