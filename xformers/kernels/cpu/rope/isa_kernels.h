// The rotary kernels of each instruction set. frequencies: [head_dim / 2].
#pragma once

#include "xformers/kernels/cpu/base/isa_list.h"
#include "xformers/kernels/cpu/base/parallel_for.h"
#include "xformers/kernels/params/rope.h"

namespace xformers::cpu {

#define XFORMERS_DECLARE_ISA(isa)                                                                      \
  namespace isa {                                                                                      \
  void rope_padded(const RopePaddedParams& params, const double* frequencies, const Threads& threads); \
  void rotary(const RotaryParams& params, const double* frequencies, const Threads& threads);          \
  }
XFORMERS_FOR_EACH_VECTOR_ISA(XFORMERS_DECLARE_ISA)
#undef XFORMERS_DECLARE_ISA

}  // namespace xformers::cpu
