// Products and softmax of compressed sparse rows on the GPU. Plain C++; a call enqueues one kernel and does not wait.
//
// The pattern lies in device memory and is not looked at here: offsets and indices that leave the matrix are taken as
// the nearest place inside, so that nothing outside is read or written. Results are the same bits from run to run.
#pragma once

#include "xformers/kernels/cuda/base/stream.h"
#include "xformers/kernels/params/csr.h"

namespace xformers::cuda {

void csr_sddmm(const CsrSddmmParams& params, const Stream& where);
void csr_spmm(const CsrSpmmParams& params, const Stream& where);
void csr_softmax_forward(const CsrSoftmaxFwdParams& params, const Stream& where);
void csr_softmax_backward(const CsrSoftmaxBwdParams& params, const Stream& where);

}  // namespace xformers::cuda
