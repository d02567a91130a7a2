// Ordered kernel lists: the first kernel without objections runs; XFORMERS_KERNEL forces one by name.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "xformers/kernels/base/error.h"

namespace xformers::cuda {

// What a kernel has against a call. Choosing asks only whether there is anything; texts are made for whoever reads
// them.
class Reasons {
 public:
  enum class Want { kAny, kTexts };
  explicit Reasons(Want want) : wants_texts_(want == Want::kTexts) {}

  template <class... Parts>
  void add(const Parts&... parts) {
    any_ = true;
    if (!wants_texts_) return;
    std::ostringstream text;
    (text << ... << parts);
    texts_.push_back(text.str());
  }
  bool any() const { return any_; }
  const std::vector<std::string>& texts() const { return texts_; }

 private:
  bool wants_texts_, any_ = false;
  std::vector<std::string> texts_;
};

template <class Params>
struct Kernel {
  const char* name;
  void (*why_not)(const Params& params, Reasons& reasons);
  size_t (*workspace)(const Params& params);
  void (*run)(const Params& params, const struct Stream& stream);
};
template <class Params>
using KernelList = std::vector<Kernel<Params>>;

template <class Params>
bool has(const KernelList<Params>& list, std::string_view name) {
  return std::any_of(list.begin(), list.end(), [&](const auto& kernel) { return name == kernel.name; });
}

template <class Params>
std::vector<std::string> texts_of(const Kernel<Params>& kernel, const Params& params) {
  Reasons reasons(Reasons::Want::kTexts);
  kernel.why_not(params, reasons);
  return reasons.texts();
}

template <class Params>
[[noreturn]] void refuse(const KernelList<Params>& list, const Params& params, std::string_view forced) {
  std::string report;
  for (const Kernel<Params>& kernel : list) {
    const std::vector<std::string> texts = forced.empty() || forced == kernel.name
                                               ? texts_of(kernel, params)
                                               : std::vector{"XFORMERS_KERNEL asks for " + std::string(forced)};
    report += std::string("\n  ") + kernel.name + ":";
    for (size_t i = 0; i < texts.size(); ++i) report += (i ? "; " : " ") + texts[i];
  }
  throw Error("attention: no CUDA kernel takes this call" +
              (forced.empty() ? "" : " with XFORMERS_KERNEL=" + std::string(forced)) +
              ", expected one without objections.  Fix: " +
              (forced.empty() ? "see the reasons" : "unset XFORMERS_KERNEL, or name one that fits") + "." + report);
}

// A name of the other direction, or of a CPU kernel, leaves this list free.
template <class Params>
const Kernel<Params>& choose(const KernelList<Params>& list, const Params& params) {
  const char* setting = std::getenv("XFORMERS_KERNEL");
  const std::string_view forced = setting && has(list, setting) ? setting : "";
  for (const Kernel<Params>& kernel : list) {
    if (!forced.empty() && forced != kernel.name) continue;
    Reasons reasons(Reasons::Want::kAny);
    kernel.why_not(params, reasons);
    if (!reasons.any()) return kernel;
  }
  refuse(list, params, forced);
}

template <class Params>
std::vector<std::string> names(const KernelList<Params>& list) {
  std::vector<std::string> result;
  for (const auto& kernel : list) result.push_back(kernel.name);
  return result;
}

template <class Params>
std::vector<std::string> reasons_of(const KernelList<Params>& list, std::string_view name, const Params& params) {
  for (const auto& kernel : list) {
    if (name == kernel.name) return texts_of(kernel, params);
  }
  return {"no kernel of this name"};
}

}  // namespace xformers::cuda
