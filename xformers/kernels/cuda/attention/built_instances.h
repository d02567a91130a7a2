// The tensor-core instances that this build has.
#pragma once

#include <vector>

#include "xformers/kernels/base/dtype.h"
#include "xformers/kernels/cuda/attention/instances.h"

namespace xformers::cuda {

template <class Launch>
struct Instance {
  DType dtype;
  int head_dim;
  Launch launch;
};
using LaunchForward = void (*)(const FwdArgs& args, Features features, cudaStream_t stream);
using LaunchBackward = void (*)(const BwdArgs& args, Features features, cudaStream_t stream);
using LaunchDecode = void (*)(const FwdArgs& args, cudaStream_t stream);

const std::vector<Instance<LaunchForward>>& built_forward();
const std::vector<Instance<LaunchDecode>>& built_decode();
const std::vector<Instance<LaunchBackward>>& built_backward();

}  // namespace xformers::cuda
