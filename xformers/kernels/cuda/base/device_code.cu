// Whether this library has machine code, or PTX that the driver can compile, for the current device, and which clusters
// that code can be launched in.
#include <cuda_runtime.h>

#include "xformers/kernels/cuda/base/cuda_check.h"
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

int largest_cluster() {
  const auto* const kernel = reinterpret_cast<const void*>(nothing);
  if (!starts_early(kernel)) return 1;
  constexpr int kSmem = 96 * 1024;
  XFORMERS_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSmem));
  XFORMERS_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(16), config.blockDim = dim3(128), config.dynamicSmemBytes = kSmem;
  int blocks = 1;
  XFORMERS_CUDA_CHECK(cudaOccupancyMaxPotentialClusterSize(&blocks, kernel, &config));
  return blocks;
}

}  // namespace xformers::cuda
