// The list of forward kernels, best first; the last one takes everything.
#pragma once

#include "xformers/kernels/cuda/attention/kernel_list.h"
#include "xformers/kernels/params/attention.h"

namespace xformers::cuda {

const KernelList<AttentionFwdParams>& forward_list();

}  // namespace xformers::cuda
