// The gate of each instruction set.
#pragma once

#include "xformers/kernels/cpu/base/isa_list.h"
#include "xformers/kernels/cpu/base/parallel_for.h"
#include "xformers/kernels/params/gate.h"

namespace xformers::cpu {

#define XFORMERS_DECLARE_ISA(isa)                                          \
  namespace isa {                                                          \
  void gate_forward(const GateFwdParams& params, const Threads& threads);  \
  void gate_backward(const GateBwdParams& params, const Threads& threads); \
  }
XFORMERS_FOR_EACH_VECTOR_ISA(XFORMERS_DECLARE_ISA)
#undef XFORMERS_DECLARE_ISA

}  // namespace xformers::cpu
