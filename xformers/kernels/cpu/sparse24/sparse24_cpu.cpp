#include "xformers/kernels/cpu/sparse24/sparse24_cpu.h"

#include "xformers/kernels/cpu/base/isa_fn.h"
#include "xformers/kernels/params/checks.h"

namespace xformers::cpu {

XFORMERS_DECLARE_FOR_ISAS(void sparse24_pack(const Sparse24PackParams& params, const Threads& threads);
                          void sparse24_dense(const Sparse24DenseParams& params, const Threads& threads);
                          void sparse24_activation_backward(const Sparse24ActivationBwdParams& params,
                                                            const Threads& threads);
                          void sparse24_unpack(const Sparse24UnpackParams& params, const Threads& threads);
                          void sparse24_product(const Sparse24ProductParams& params, const Threads& threads);)

void sparse24_pack(const Sparse24PackParams& params, const Threads& threads) {
  check(params);
  if (params.rows > 0 && params.cols > 0) XFORMERS_BY_PLAIN_ISA(sparse24_pack)(params, threads);
}

void sparse24_dense(const Sparse24DenseParams& params, const Threads& threads) {
  check(params);
  if (params.rows > 0 && params.cols > 0) XFORMERS_BY_PLAIN_ISA(sparse24_dense)(params, threads);
}

void sparse24_activation_backward(const Sparse24ActivationBwdParams& params, const Threads& threads) {
  check(params);
  if (params.rows > 0 && params.cols > 0) XFORMERS_BY_PLAIN_ISA(sparse24_activation_backward)(params, threads);
}

void sparse24_unpack(const Sparse24UnpackParams& params, const Threads& threads) {
  check(params);
  if (params.rows > 0 && params.cols > 0) XFORMERS_BY_PLAIN_ISA(sparse24_unpack)(params, threads);
}

void sparse24_product(const Sparse24ProductParams& params, const Threads& threads) {
  check(params);
  if (params.m > 0 && params.n > 0) XFORMERS_BY_PLAIN_ISA(sparse24_product)(params, threads);
}

}  // namespace xformers::cpu
