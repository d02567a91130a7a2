// Whether this library has machine code, or PTX that the driver can compile, for the current device.
#include <cuda_runtime.h>

#include "xformers/kernels/cuda/base/device.h"

namespace xformers::cuda {
namespace {
__global__ void nothing() {}
}  // namespace

bool has_code_for_this_device() {
  cudaFuncAttributes attributes{};
  const bool has = cudaFuncGetAttributes(&attributes, nothing) == cudaSuccess;
  if (!has) cudaGetLastError();
  return has;
}

bool has_clusters() { return starts_early(reinterpret_cast<const void*>(nothing)); }

}  // namespace xformers::cuda
