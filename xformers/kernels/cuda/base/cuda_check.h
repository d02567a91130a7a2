// Every CUDA call is checked: a failure names call, error and place, and throws.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "xformers/kernels/base/error.h"

namespace xformers::cuda {

inline void check(cudaError_t status, const char* call, const char* file, int line) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // a later call must not report this one again
  throw DeviceError(std::string("cuda: ") + call + " at " + file + ":" + std::to_string(line) + " gave " +
                    cudaGetErrorName(status) + " (" + cudaGetErrorString(status) +
                    "), expected success.  Fix: CUDA_LAUNCH_BLOCKING=1 shows whether an earlier kernel failed");
}

}  // namespace xformers::cuda

#define XFORMERS_CUDA_CHECK(call) ::xformers::cuda::check((call), #call, __FILE_NAME__, __LINE__)
