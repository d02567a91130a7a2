// Prints the instruction sets of this machine as a CMake list; ../isas.cmake runs it for XFORMERS_CPU_ISAS=host.
#include <cstdio>

#include "xformers/kernels/cpu/base/cpu_features.h"

int main() {
  const char* separator = "";
  for (xformers::cpu::Isa isa : xformers::cpu::kAllIsas) {
    if (!xformers::cpu::has_isa(isa)) continue;
    std::printf("%s%s", separator, xformers::cpu::name_of(isa));
    separator = ";";
  }
}
