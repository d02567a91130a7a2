#include "xformers/kernels/cpu/norm/norm_cpu.h"

#include "xformers/kernels/base/error.h"
#include "xformers/kernels/cpu/base/isa_fn.h"
#include "xformers/kernels/cpu/norm/isa_kernels.h"

namespace xformers::cpu {

void norm_forward(const NormFwdParams& params, const Threads& threads) {
  if (params.increment.data && params.shape.kind != NormKind::kRms) {
    throw Error("norm: increment is given for a layer norm, expected none.  Fix: add it before.");
  }
  if (params.shape.rows > 0 && params.shape.width > 0) XFORMERS_BY_ISA(norm_forward)(params, threads);
}

void norm_backward(const NormBwdParams& params, const Threads& threads) {
  if (params.shape.width > 0) XFORMERS_BY_ISA(norm_backward)(params, threads);
}

}  // namespace xformers::cpu
