// Ordered lists of kernels, of every device: the first kernel without objections runs; XFORMERS_KERNEL forces one by
// name. A kernel is a struct with a `name` and whatever its list needs to plan and to run it.
#pragma once

#include <algorithm>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "xformers/kernels/base/error.h"

namespace xformers {

// What a kernel has against a call. Choosing asks only whether there is anything; texts are made for whoever reads
// them.
class Reasons {
 public:
  enum class Want { kAny, kTexts, kPreference };
  explicit Reasons(Want want) : want_(want) {}

  template <class... Parts>
  void add(const Parts&... parts) {
    any_ = true;
    if (want_ != Want::kTexts) return;
    std::ostringstream text;
    (text << ... << parts);
    texts_.push_back(text.str());
  }
  // It could, but one behind it in the list is faster: no objection where it is forced, or asked whether it can.
  void prefer_others() { any_ |= want_ == Want::kPreference; }
  bool any() const { return any_; }
  const std::vector<std::string>& texts() const { return texts_; }

 private:
  Want want_;
  bool any_ = false;
  std::vector<std::string> texts_;
};

// What XFORMERS_KERNEL may be: the names of all lists of all devices. A file that holds lists has one of these at
// namespace scope.
class KernelNames {
 public:
  template <class... Lists>
  explicit KernelNames(const Lists&... lists) {
    (add_all(lists), ...);
  }

 private:
  template <class List>
  static void add_all(const List& list) {
    for (const auto& kernel : list) add(kernel.name);
  }
  static void add(std::string_view name);
};

// XFORMERS_KERNEL, "" where it is unset. Throws xformers::Error, naming the nearest, where no list has such a kernel.
std::string_view forced_kernel();

template <class List>
bool has_kernel(const List& list, std::string_view name) {
  return std::any_of(std::begin(list), std::end(list), [&](const auto& kernel) { return name == kernel.name; });
}

template <class List>
std::vector<std::string> names(const List& list) {
  std::vector<std::string> result;
  for (const auto& kernel : list) result.emplace_back(kernel.name);
  return result;
}

// What one kernel has against a call: plan(kernel, reasons) adds it.
template <class List, class PlanOf>
std::vector<std::string> reasons_of(const List& list, std::string_view name, const PlanOf& plan) {
  for (const auto& kernel : list) {
    if (name != kernel.name) continue;
    Reasons reasons(Reasons::Want::kTexts);
    plan(kernel, reasons);
    return reasons.texts();
  }
  return {"no kernel of this name"};
}

// Throws what all kernels of a list have against a call. `what`: "attention: no CPU kernel".
template <class List, class PlanOf>
[[noreturn]] void refuse(const char* what, const List& list, std::string_view forced, const PlanOf& plan) {
  std::string report;
  for (const auto& kernel : list) {
    const std::vector<std::string> texts = forced.empty() || forced == kernel.name
                                               ? reasons_of(list, kernel.name, plan)
                                               : std::vector{"XFORMERS_KERNEL asks for " + std::string(forced)};
    report += std::string("\n  ") + kernel.name + ":";
    for (size_t i = 0; i < texts.size(); ++i) report += (i ? "; " : " ") + texts[i];
  }
  throw Error(std::string(what) + " takes this call" +
              (forced.empty() ? "" : " with XFORMERS_KERNEL=" + std::string(forced)) +
              ", expected one without objections.  Fix: " +
              (forced.empty() ? "see the reasons" : "unset XFORMERS_KERNEL, or name one that fits") + "." + report);
}

// The first kernel that plan(kernel, reasons) gives an optional plan for, with that plan. A forced kernel of another
// list (of the other direction, or device) leaves this one free.
template <class Kernel, class Plan>
struct Chosen {
  const Kernel& kernel;
  Plan plan;
};
template <class List, class PlanOf>
auto choose(const char* what, const List& list, const PlanOf& plan) {
  using Kernel = std::remove_cvref_t<decltype(*std::begin(list))>;
  using Plan = typename std::invoke_result_t<PlanOf, const Kernel&, Reasons&>::value_type;
  std::string_view forced = forced_kernel();
  if (!has_kernel(list, forced)) forced = "";
  for (const Kernel& kernel : list) {
    if (!forced.empty() && forced != kernel.name) continue;
    Reasons reasons(forced.empty() ? Reasons::Want::kPreference : Reasons::Want::kAny);
    if (auto planned = plan(kernel, reasons)) return Chosen<Kernel, Plan>{kernel, *std::move(planned)};
  }
  refuse(what, list, forced, plan);
}

}  // namespace xformers
