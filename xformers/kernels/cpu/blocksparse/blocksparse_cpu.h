// Products and softmax of block-sparse matrices on the CPU. Each call looks at the layout first and throws
// xformers::Error, before it writes anything, where that leaves the matrix. Sums in fp32 (fp64 for fp64), one rounding.
// Results do not depend on the number of threads.
#pragma once

#include "xformers/kernels/cpu/base/parallel_for.h"
#include "xformers/kernels/params/blocksparse.h"

namespace xformers::cpu {

void block_sdd(const BlockSddParams& params, const Threads& threads);
void block_dsd(const BlockDsdParams& params, const Threads& threads);
void block_softmax_forward(const BlockSoftmaxFwdParams& params, const Threads& threads);
void block_softmax_backward(const BlockSoftmaxBwdParams& params, const Threads& threads);

}  // namespace xformers::cpu
