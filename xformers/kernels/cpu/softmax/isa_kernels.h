// The softmax kernels of each instruction set.
#pragma once

#include "xformers/kernels/cpu/base/isa_list.h"
#include "xformers/kernels/cpu/base/parallel_for.h"
#include "xformers/kernels/params/softmax.h"

namespace xformers::cpu {

#define XFORMERS_DECLARE_ISA(isa)                                                \
  namespace isa {                                                                \
  void softmax_forward(const SoftmaxFwdParams& params, const Threads& threads);  \
  void softmax_backward(const SoftmaxBwdParams& params, const Threads& threads); \
  }
XFORMERS_FOR_EACH_VECTOR_ISA(XFORMERS_DECLARE_ISA)
#undef XFORMERS_DECLARE_ISA

}  // namespace xformers::cpu
