#include "examples/microgpt/device.h"

#include <ATen/DeviceAccelerator.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <dlfcn.h>

#include <string>

#include "examples/microgpt/error.h"

namespace microgpt {
namespace {

// Why there is no GPU to compute on; empty: there is one. PyTorch's GPU part is a library of its own, which registers
// itself when it is loaded: the program links the CPU's alone, so that it starts where there is no other.
std::string why_no_gpu() {
  if (!dlopen("libcuda.so.1", RTLD_LAZY)) return "this machine has no NVIDIA driver";  // PyTorch's part takes seconds
  if (!dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL)) return "this PyTorch has no GPU support";
  if (at::accelerator::deviceCount() == 0 || !at::accelerator::isAccelerator(at::kCUDA)) {
    return "PyTorch sees no NVIDIA GPU";
  }
  const auto op = c10::Dispatcher::singleton().findSchema({"xformers::attention_forward", ""});
  if (!op || !op->hasKernelForDispatchKey(c10::DispatchKey::CUDA)) {
    return "xformers was built without CUDA kernels (build with -DXFORMERS_CUDA=ON)";
  }
  return "";
}

}  // namespace

void choose_device(ComputeOptions& compute) {
  if (compute.sparse24 != "none") {
    if (compute.device == "cuda") throw Error("--sparse24: there are no kernels for GPUs yet.  Fix: --device cpu");
    compute.device = "cpu";
  }
  if (compute.device != "cpu") {
    const std::string problem = why_no_gpu();
    if (compute.device == "cuda" && !problem.empty()) throw Error("--device cuda: " + problem + ".  Fix: --device cpu");
    compute.device = problem.empty() ? "cuda" : "cpu";
  }
  if (compute.dtype == "auto") compute.dtype = compute.device == "cuda" ? "bfloat16" : "float32";
}

at::Device device_of(const ComputeOptions& compute) {
  return compute.device == "cuda" ? at::Device(at::kCUDA, 0) : at::Device(at::kCPU);
}

int64_t gpu_peak_bytes() {
  constexpr size_t kAll = 0;  // of small and large blocks
  return c10::getDeviceAllocator(at::kCUDA)->getDeviceStats(0).allocated_bytes[kAll].peak;
}
void forget_gpu_peak() { c10::getDeviceAllocator(at::kCUDA)->resetPeakStats(0); }

}  // namespace microgpt
