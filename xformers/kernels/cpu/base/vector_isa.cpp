#include "xformers/kernels/cpu/base/vector_isa.h"

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
  const std::optional<Isa> limit = isa_limit("CPU kernels");
  return limit ? highest_up_to(*limit) : best;
}

}  // namespace xformers::cpu
