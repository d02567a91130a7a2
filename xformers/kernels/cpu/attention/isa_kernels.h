// The kernels of each instruction set: tiled forward and backward, and decode for few rows. Each set lives in its own
// unit with its own compiler flags.
#pragma once

#include "xformers/kernels/cpu/attention/plan.h"
#include "xformers/kernels/cpu/base/isa_list.h"
#include "xformers/kernels/cpu/base/parallel_for.h"
#include "xformers/kernels/params/attention.h"

namespace xformers::cpu {

using ForwardFn = void (*)(const AttentionFwdParams& params, const ForwardPlan& plan, const Threads& threads);
using BackwardFn = void (*)(const AttentionBwdParams& params, const BackwardPlan& plan, const Threads& threads);

#define XFORMERS_DECLARE_ISA(isa)                                                                    \
  namespace isa {                                                                                    \
  void forward(const AttentionFwdParams& params, const ForwardPlan& plan, const Threads& threads);   \
  void backward(const AttentionBwdParams& params, const BackwardPlan& plan, const Threads& threads); \
  void decode(const AttentionFwdParams& params, const ForwardPlan& plan, const Threads& threads);    \
  }
XFORMERS_FOR_EACH_ISA(XFORMERS_DECLARE_ISA)  // avx512_fp16 has no decode: that of avx512 serves
#undef XFORMERS_DECLARE_ISA

}  // namespace xformers::cpu
