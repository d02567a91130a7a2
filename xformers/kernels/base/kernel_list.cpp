#include "xformers/kernels/base/kernel_list.h"

#include <cstdlib>

#include "xformers/kernels/base/nearest_name.h"

namespace xformers {
namespace {

std::vector<std::string_view>& all_names() {
  static std::vector<std::string_view> names;
  return names;
}

}  // namespace

void KernelNames::add(std::string_view name) { all_names().push_back(name); }

std::string_view forced_kernel() {
  const char* const setting = std::getenv("XFORMERS_KERNEL");
  const std::string_view forced = setting ? setting : "";
  const std::vector<std::string_view>& names = all_names();
  if (forced.empty() || std::find(names.begin(), names.end(), forced) != names.end()) return forced;
  std::string report;
  for (std::string_view name : names) report += "\n  " + std::string(name);
  throw Error("attention: XFORMERS_KERNEL is " + std::string(forced) +
              ", expected the name of a kernel.  Fix: the nearest is " + std::string(nearest_name(forced, names)) +
              "; all that there are:" + report);
}

}  // namespace xformers
