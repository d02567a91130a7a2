#include "xformers/kernels/cpu/rope/rope_cpu.h"

#include <vector>

#include "xformers/kernels/cpu/base/isa_fn.h"
#include "xformers/kernels/params/checks.h"
#include "xformers/kernels/params/rope_check.h"
#include "xformers/kernels/params/rope_frequencies.h"

namespace xformers::cpu {

XFORMERS_DECLARE_FOR_ISAS(void rope_padded(const RopePaddedParams& params, const double* frequencies,
                                           const Threads& threads);
                          void rotary(const RotaryParams& params, const double* frequencies, const Threads& threads);)

void rope_padded(const RopePaddedParams& params, const Threads& threads) {
  check(params);
  const std::vector<double> frequencies = rope_frequencies(params.head_dim, params.scaling);
  check_rope_sequences(params);
  XFORMERS_BY_ISA(params.dtype, rope_padded)(params, frequencies.data(), threads);
}

void rotary(const RotaryParams& params, const Threads& threads) {
  check(params);
  const std::vector<double> frequencies = rope_frequencies(params.head_dim, params.scaling);
  if (params.outer == 0 || params.seqlen == 0) return;
  XFORMERS_BY_ISA(params.dtype, rotary)(params, frequencies.data(), threads);
}

}  // namespace xformers::cpu
