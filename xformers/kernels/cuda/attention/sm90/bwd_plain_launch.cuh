// Launches one backward instance.
#pragma once

#include "xformers/kernels/cuda/attention/sm90/bwd_launch.cuh"

#define XFORMERS_INSTANCE(type, head_dim, head_dim_v)                                              \
  template void xformers::cuda::sm90::launch_backward<xformers::cuda::type, head_dim, head_dim_v>( \
      const BwdArgs&, Features, cudaStream_t);
