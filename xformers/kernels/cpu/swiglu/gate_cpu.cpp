#include "xformers/kernels/cpu/swiglu/gate_cpu.h"

#include "xformers/kernels/cpu/base/isa_fn.h"
#include "xformers/kernels/params/checks.h"

namespace xformers::cpu {

XFORMERS_DECLARE_FOR_ISAS(void gate_forward(const GateFwdParams& params, const Threads& threads);
                          void gate_backward(const GateBwdParams& params, const Threads& threads);)

void gate_forward(const GateFwdParams& params, const Threads& threads) {
  check(params);
  if (params.rows > 0 && params.width > 0) XFORMERS_BY_ISA(params.dtype, gate_forward)(params, threads);
}

void gate_backward(const GateBwdParams& params, const Threads& threads) {
  check(params);
  if (params.rows > 0 && params.width > 0) XFORMERS_BY_ISA(params.dtype, gate_backward)(params, threads);
}

}  // namespace xformers::cpu
