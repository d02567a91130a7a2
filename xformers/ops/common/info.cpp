// The operator through which Python asks what this machine can do.
#include <torch/library.h>

#include <string>
#include <vector>

#include "xformers/kernels/cpu/base/isa_choice.h"

namespace {

std::vector<std::string> cpu_isas() { return xformers::cpu::available_isa_names(); }

}  // namespace

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  m.def("cpu_isas() -> str[]", cpu_isas);  // in rising order
}
