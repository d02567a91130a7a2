#include "xformers/kernels/cpu/base/vector_isa.h"

#include <cstdlib>
#include <string>
#include <string_view>

#include "xformers/kernels/base/error.h"

namespace xformers::cpu {
namespace {

// The best of our compilations that this machine can run, and not above `limit`.
Isa highest_up_to(Isa limit) {
  Isa best = Isa::kPortable;
  for (Isa isa : {Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16}) {
    if (isa <= limit && has_isa(isa)) best = isa;
  }
  return best;
}

}  // namespace

Isa vector_isa() {
  static const Isa best = highest_up_to(Isa::kAmx);
  const char* wanted = std::getenv("XFORMERS_CPU_ISA");
  if (!wanted || !*wanted) return best;
  for (Isa isa : kAllIsas) {
    if (std::string_view(wanted) == name_of(isa) && has_isa(isa)) return highest_up_to(isa);
  }
  std::string available;
  for (const std::string& each : available_isa_names()) available += (available.empty() ? "" : ", ") + each;
  throw Error("CPU kernels: XFORMERS_CPU_ISA is '" + std::string(wanted) +
              "', expected one that this processor has: " + available + ".  Fix: unset it, or name one of these.");
}

}  // namespace xformers::cpu
