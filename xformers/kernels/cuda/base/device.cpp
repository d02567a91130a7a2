#include "xformers/kernels/cuda/base/device.h"

#include <cuda_runtime_api.h>

#include <array>
#include <mutex>

#include "xformers/kernels/cuda/base/cuda_check.h"

namespace xformers::cuda {
namespace {
constexpr int kMaxDevices = 64;
}

const DeviceProperties& current_device() {
  static std::array<DeviceProperties, kMaxDevices> known;
  static std::array<std::once_flag, kMaxDevices> read;
  int device = 0;
  XFORMERS_CUDA_CHECK(cudaGetDevice(&device));
  if (device >= kMaxDevices)
    throw Error("cuda: device " + std::to_string(device) + ", expected below 64.  Fix: hide some");
  std::call_once(read[device], [&] {
    DeviceProperties& p = known[device];
    XFORMERS_CUDA_CHECK(cudaDeviceGetAttribute(&p.multiprocessors, cudaDevAttrMultiProcessorCount, device));
    XFORMERS_CUDA_CHECK(cudaDeviceGetAttribute(&p.smem_per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  });
  return known[device];
}

std::string why_not_this_device() {
  int device = 0, major = 0, minor = 0;
  const auto failed = [](cudaError_t status) {
    if (status != cudaSuccess) cudaGetLastError();
    return status != cudaSuccess;
  };
  if (const cudaError_t status = cudaGetDevice(&device); failed(status)) {
    return std::string("no usable NVIDIA GPU: ") + cudaGetErrorString(status);
  }
  if (failed(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device)) ||
      failed(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device))) {
    return "the GPU does not answer";
  }
  if (major >= 8) return "";
  return "the GPU has compute capability " + std::to_string(major) + "." + std::to_string(minor) +
         ", expected 8.0 or later";
}

}  // namespace xformers::cuda
