#include "xformers/kernels/cpu/softmax/softmax_cpu.h"

#include "xformers/kernels/cpu/base/isa_fn.h"
#include "xformers/kernels/params/checks.h"

namespace xformers::cpu {

XFORMERS_DECLARE_FOR_ISAS(void softmax_forward(const SoftmaxFwdParams& params, const Threads& threads);
                          void softmax_backward(const SoftmaxBwdParams& params, const Threads& threads);)
namespace {

bool is_empty(const SoftmaxShape& shape) {
  return shape.outer0 == 0 || shape.outer1 == 0 || shape.rows == 0 || shape.width == 0;
}

}  // namespace

void softmax_forward(const SoftmaxFwdParams& params, const Threads& threads) {
  check(params);
  if (!is_empty(params.shape)) XFORMERS_BY_ISA(params.shape.dtype, softmax_forward)(params, threads);
}

void softmax_backward(const SoftmaxBwdParams& params, const Threads& threads) {
  check(params);
  if (!is_empty(params.shape)) XFORMERS_BY_ISA(params.shape.dtype, softmax_backward)(params, threads);
}

}  // namespace xformers::cpu
