// Bands as the CUDA kernels count them, in 32 bits.
#pragma once

#include "xformers/kernels/cuda/attention/seqlen.cuh"
#include "xformers/kernels/params/band.h"

namespace xformers::cuda {

using Range = RangeOf<int>;
using Band = BandOf<int>;

}  // namespace xformers::cuda
