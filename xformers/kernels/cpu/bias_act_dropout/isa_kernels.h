// The fused layer of each instruction set.
#pragma once

#include "xformers/kernels/cpu/base/isa_list.h"
#include "xformers/kernels/cpu/base/parallel_for.h"
#include "xformers/kernels/params/bias_act_dropout.h"

namespace xformers::cpu {

#define XFORMERS_DECLARE_ISA(isa)                                                                \
  namespace isa {                                                                                \
  void bias_act_dropout_forward(const BiasActDropoutFwdParams& params, const Threads& threads);  \
  void bias_act_dropout_backward(const BiasActDropoutBwdParams& params, const Threads& threads); \
  }
XFORMERS_FOR_EACH_VECTOR_ISA(XFORMERS_DECLARE_ISA)
#undef XFORMERS_DECLARE_ISA

}  // namespace xformers::cpu
