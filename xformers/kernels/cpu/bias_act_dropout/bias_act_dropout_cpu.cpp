#include "xformers/kernels/cpu/bias_act_dropout/bias_act_dropout_cpu.h"

#include "xformers/kernels/cpu/base/isa_fn.h"
#include "xformers/kernels/params/checks.h"

namespace xformers::cpu {

XFORMERS_DECLARE_FOR_ISAS(void bias_act_dropout_forward(const BiasActDropoutFwdParams& params, const Threads& threads);
                          void bias_act_dropout_backward(const BiasActDropoutBwdParams& params,
                                                         const Threads& threads);)

void bias_act_dropout_forward(const BiasActDropoutFwdParams& params, const Threads& threads) {
  check(params, WeightTypes::kCompute);
  if (params.shape.rows > 0 && params.shape.width > 0)
    XFORMERS_BY_ISA(params.shape.dtype, bias_act_dropout_forward)(params, threads);
}

void bias_act_dropout_backward(const BiasActDropoutBwdParams& params, const Threads& threads) {
  check(params, WeightTypes::kCompute);
  if (params.shape.width > 0) XFORMERS_BY_ISA(params.shape.dtype, bias_act_dropout_backward)(params, threads);
}

}  // namespace xformers::cpu
