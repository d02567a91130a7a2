// Ordered kernel lists: the first kernel without objections runs; XFORMERS_KERNEL forces one by name.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "xformers/kernels/base/error.h"

namespace xformers::cuda {

using Reasons = std::vector<std::string>;

template <class Params>
struct Kernel {
  const char* name;
  Reasons (*why_not)(const Params& params);
  size_t (*workspace)(const Params& params);
  void (*run)(const Params& params, const struct Stream& stream);
};

template <class Params>
bool has(const std::vector<Kernel<Params>>& list, std::string_view name) {
  return std::any_of(list.begin(), list.end(), [&](const auto& kernel) { return name == kernel.name; });
}

inline std::string_view wanted_kernel() {
  const char* name = std::getenv("XFORMERS_KERNEL");
  return name ? name : "";
}

// A name of the other direction, or of a CPU kernel, leaves this list free.
template <class Params>
const Kernel<Params>& choose(const std::vector<Kernel<Params>>& list, const Params& params) {
  const std::string_view wanted = wanted_kernel();
  const bool forced = !wanted.empty() && has(list, wanted);
  std::string report;
  for (const Kernel<Params>& kernel : list) {
    Reasons reasons;
    if (forced && wanted != kernel.name) {
      reasons.push_back("XFORMERS_KERNEL asks for " + std::string(wanted));
    } else {
      reasons = kernel.why_not(params);
    }
    if (reasons.empty()) return kernel;
    report += std::string("\n  ") + kernel.name + ":";
    for (size_t i = 0; i < reasons.size(); ++i) report += (i ? "; " : " ") + reasons[i];
  }
  throw Error("attention: no CUDA kernel takes this call" +
              (forced ? " with XFORMERS_KERNEL=" + std::string(wanted) : "") +
              ", expected one without objections.  Fix: " +
              (forced ? "unset XFORMERS_KERNEL, or name one that fits" : "see the reasons") + "." + report);
}

template <class Params>
std::vector<std::string> names(const std::vector<Kernel<Params>>& list) {
  std::vector<std::string> result;
  for (const auto& kernel : list) result.push_back(kernel.name);
  return result;
}

template <class Params>
Reasons reasons_of(const std::vector<Kernel<Params>>& list, std::string_view name, const Params& params) {
  for (const auto& kernel : list) {
    if (name == kernel.name) return kernel.why_not(params);
  }
  return {"no kernel of this name"};
}

}  // namespace xformers::cuda
