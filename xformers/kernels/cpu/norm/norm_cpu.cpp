#include "xformers/kernels/cpu/norm/norm_cpu.h"

#include "xformers/kernels/cpu/base/isa_fn.h"
#include "xformers/kernels/params/checks.h"

namespace xformers::cpu {

XFORMERS_DECLARE_FOR_ISAS(void norm_forward(const NormFwdParams& params, const Threads& threads);
                          void norm_of_sum(const NormOfSumParams& params, const Threads& threads);
                          void norm_backward(const NormBwdParams& params, const Threads& threads);)

void norm_forward(const NormFwdParams& params, const Threads& threads) {
  check(params, WeightTypes::kCompute);
  if (params.shape.rows > 0 && params.shape.width > 0)
    XFORMERS_BY_ISA(params.shape.dtype, norm_forward)(params, threads);
}

void norm_of_sum(const NormOfSumParams& params, const Threads& threads) {
  const NormShape& shape = params.norm.shape;
  check(params.norm, WeightTypes::kCompute);
  if (shape.rows > 0 && shape.width > 0) XFORMERS_BY_ISA(shape.dtype, norm_of_sum)(params, threads);
}

void norm_backward(const NormBwdParams& params, const Threads& threads) {
  check(params, WeightTypes::kCompute);
  if (params.shape.width > 0) XFORMERS_BY_ISA(params.shape.dtype, norm_backward)(params, threads);
}

}  // namespace xformers::cpu
