#include "xformers/kernels/cpu/base/isa_choice.h"

#include <cstdlib>
#include <string_view>

#include "xformers/kernels/base/error.h"
#include "xformers/kernels/cpu/base/built_isas.h"

namespace xformers::cpu {
namespace {

std::string list_of(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& each : names) text += (text.empty() ? "" : ", ") + each;
  return text;
}

bool is_available(Isa isa) { return is_built(isa) && has_isa(isa); }

Isa highest_up_to(Isa limit) {
  std::optional<Isa> best;
  for (Isa isa : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16}) {
    if (isa <= limit && is_available(isa)) best = isa;
  }
  if (best) return *best;
  throw Error(std::string("CPU kernels: none up to ") + name_of(limit) +
              " runs here; this build's for this processor: " + list_of(available_isa_names()) +
              ".  Fix: build with XFORMERS_CPU_ISAS=all.");
}

}  // namespace

bool is_built(Isa isa) {
  for (const char* name : {XFORMERS_BUILT_ISAS}) {
    if (std::string_view(name) == name_of(isa)) return true;
  }
  return false;
}

std::vector<std::string> available_isa_names() {
  std::vector<std::string> names;
  for (Isa isa : kAllIsas) {
    if (is_available(isa)) names.push_back(name_of(isa));
  }
  return names;
}

std::optional<Isa> isa_limit(const char* what) {
  const char* wanted = std::getenv("XFORMERS_CPU_ISA");
  if (!wanted || !*wanted) return std::nullopt;
  bool left_out = false;
  for (Isa isa : kAllIsas) {
    if (std::string_view(wanted) != name_of(isa)) continue;
    if (is_available(isa)) return isa;
    left_out = has_isa(isa);
  }
  throw Error(std::string(what) + ": XFORMERS_CPU_ISA is '" + wanted + "', " +
              (left_out ? "which this build leaves out, " : "") + "expected one that this processor has" +
              (left_out ? " and XFORMERS_CPU_ISAS named" : "") + ": " + list_of(available_isa_names()) +
              ".  Fix: unset it, or name one of these.");
}

Isa vector_isa() {
  const std::optional<Isa> limit = isa_limit("CPU kernels");
  if (limit) return highest_up_to(*limit);
  static const Isa best = highest_up_to(Isa::kAmx);
  return best;
}

}  // namespace xformers::cpu
