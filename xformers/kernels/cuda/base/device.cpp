#include "xformers/kernels/cuda/base/device.h"

#include <cuda_runtime_api.h>

#include <array>
#include <cstdint>
#include <mutex>

#include "xformers/kernels/cuda/base/cuda_check.h"

namespace xformers::cuda {
namespace {
constexpr int kMaxDevices = 64;

// What this thread has found out about a kernel on the current device; 0 at first, and again where another kernel has
// taken the place.
template <class What>
int& known_of(const void* kernel) {
  struct Known {
    const void* kernel = nullptr;
    int device = 0, value = 0;
  };
  thread_local std::array<Known, 128> all;
  int device = 0;
  XFORMERS_CUDA_CHECK(cudaGetDevice(&device));
  Known& known = all[(reinterpret_cast<uintptr_t>(kernel) / 16 + static_cast<uintptr_t>(device)) % all.size()];
  if (known.kernel != kernel || known.device != device) known = {kernel, device, 0};
  return known.value;
}

}  // namespace

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
    XFORMERS_CUDA_CHECK(cudaDeviceGetAttribute(&p.major, cudaDevAttrComputeCapabilityMajor, device));
    XFORMERS_CUDA_CHECK(cudaDeviceGetAttribute(&p.minor, cudaDevAttrComputeCapabilityMinor, device));
    p.has_clusters = has_code_for_this_device() && has_clusters();
  });
  return known[device];
}

void allow_shared_memory(const void* kernel, int bytes) {
  int& allowed = known_of<struct SharedMemory>(kernel);
  if (allowed >= bytes) return;
  XFORMERS_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  allowed = bytes;
}

bool starts_early(const void* kernel) {
  int& version = known_of<struct CodeVersion>(kernel);
  if (version == 0) {
    cudaFuncAttributes attributes{};
    XFORMERS_CUDA_CHECK(cudaFuncGetAttributes(&attributes, kernel));
    version = attributes.ptxVersion;
  }
  return version >= 90;
}

std::string why_not_this_device() {
  int device = 0, driver = 0;
  if (const cudaError_t status = cudaGetDevice(&device); status != cudaSuccess) {
    cudaGetLastError();
    cudaDriverGetVersion(&driver);
    const auto version = [](int number) {
      return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
    };
    if (driver == 0) return "there is no NVIDIA driver";
    if (status == cudaErrorInsufficientDriver) {
      return "the NVIDIA driver is for CUDA " + version(driver) + ", expected " + version(CUDART_VERSION) + " or later";
    }
    return std::string("there is no usable NVIDIA GPU (") + cudaGetErrorString(status) + ")";
  }
  int major = 0, minor = 0;
  XFORMERS_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  XFORMERS_CUDA_CHECK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  const std::string gpu = "the GPU has compute capability " + std::to_string(major) + "." + std::to_string(minor);
  if (major < 8) return gpu + ", expected 8.0 or later";
  return has_code_for_this_device() ? "" : gpu + ", for which this build has no code (XFORMERS_CUDA_ARCHS)";
}

}  // namespace xformers::cuda
