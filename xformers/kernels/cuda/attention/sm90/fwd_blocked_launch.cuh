// Launches one forward instance that takes a block mask.
#pragma once

#include "xformers/kernels/cuda/attention/sm90/fwd_launch.cuh"

#define XFORMERS_INSTANCE(type, head_dim, head_dim_v)                                                     \
  template void xformers::cuda::sm90::launch_forward_blocked<xformers::cuda::type, head_dim, head_dim_v>( \
      const FwdArgs&, Features, cudaStream_t);
