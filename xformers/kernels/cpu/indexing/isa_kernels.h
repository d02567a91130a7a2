// The indexing kernels of each instruction set, for one selection or addition whose indices were checked.
#pragma once

#include "xformers/kernels/cpu/base/isa_list.h"
#include "xformers/kernels/cpu/base/parallel_for.h"
#include "xformers/kernels/cpu/indexing/row_groups.h"
#include "xformers/kernels/params/indexing.h"

namespace xformers::cpu {

#define XFORMERS_DECLARE_ISA(isa)                                                                                \
  namespace isa {                                                                                                \
  void gather(DType dtype, const RowSelection& selection, const Threads& threads);                               \
  void scatter_sum(DType dtype, const RowSelection& selection, const RowGroups& groups, const Threads& threads); \
  void scaled_index_add(const ScaledIndexAddParams& params, const RowGroups& groups, const Threads& threads);    \
  void scaled_index_add_backward(const ScaledIndexAddBwdParams& params, const Threads& threads);                 \
  }
XFORMERS_FOR_EACH_VECTOR_ISA(XFORMERS_DECLARE_ISA)
#undef XFORMERS_DECLARE_ISA

}  // namespace xformers::cpu
