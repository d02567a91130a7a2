// Products and softmax of compressed sparse rows on the CPU. Each call looks at the pattern first and throws
// xformers::Error, before it writes anything, where that leaves the matrix. Sums in fp32 (fp64 for fp64), one rounding.
// Results do not depend on the number of threads.
#pragma once

#include "xformers/kernels/cpu/base/parallel_for.h"
#include "xformers/kernels/params/csr.h"

namespace xformers::cpu {

void csr_sddmm(const CsrSddmmParams& params, const Threads& threads);
void csr_spmm(const CsrSpmmParams& params, const Threads& threads);
void csr_softmax_forward(const CsrSoftmaxFwdParams& params, const Threads& threads);
void csr_softmax_backward(const CsrSoftmaxBwdParams& params, const Threads& threads);
void csr_transpose(const CsrTransposeParams& params);

}  // namespace xformers::cpu
