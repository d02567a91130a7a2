// Which instruction set runs: this build has it, this processor has it, and XFORMERS_CPU_ISA allows it.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "xformers/kernels/cpu/base/cpu_features.h"

namespace xformers::cpu {

bool is_built(Isa isa);
std::vector<std::string> available_isa_names();  // of this build and this processor, in rising order

// The instruction set that XFORMERS_CPU_ISA names, the highest to use; nothing where it is unset or empty. Throws
// xformers::Error, beginning with `what`, when it names none that this build and this processor have.
std::optional<Isa> isa_limit(const char* what);

// What the memory-bound kernels run on: the highest of kPortable, kAvx2, kAvx512 and kAvx512Bf16. Throws
// xformers::Error as isa_limit does, and when this build has none for this processor.
Isa vector_isa();

}  // namespace xformers::cpu
