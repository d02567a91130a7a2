// Products and softmax of block-sparse matrices on the GPU. Plain C++; a call enqueues one kernel and does not wait.
//
// Layouts lie in device memory and are not looked at here: offsets and indices that leave the matrix are taken as the
// nearest place inside, so that nothing outside is read or written. Results are the same bits from run to run.
#pragma once

#include "xformers/kernels/cuda/base/stream.h"
#include "xformers/kernels/params/blocksparse.h"

namespace xformers::cuda {

void block_sdd(const BlockSddParams& params, const Stream& where);
void block_dsd(const BlockDsdParams& params, const Stream& where);
void block_softmax_forward(const BlockSoftmaxFwdParams& params, const Stream& where);
void block_softmax_backward(const BlockSoftmaxBwdParams& params, const Stream& where);

}  // namespace xformers::cuda
