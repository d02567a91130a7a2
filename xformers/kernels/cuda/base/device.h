// What the current device offers. Plain C++.
#pragma once

#include <string>

namespace xformers::cuda {

struct DeviceProperties {
  int multiprocessors = 0;
  int smem_per_block = 0;     // bytes, after opting in
  int major = 0, minor = 0;   // of the compute capability
  bool has_clusters = false;  // and this library's code for it has them, too (arch/cluster.cuh)
};
const DeviceProperties& current_device();  // read once per device

// Lets a kernel ask for more than 48 KiB of dynamic shared memory on the current device. Asks the runtime once per
// kernel, device and thread: that call takes longer than all others of a launch but the launch itself.
void allow_shared_memory(const void* kernel, int bytes);

// Whether a kernel's code for the current device was compiled for compute capability 9.0 or later, and so waits by
// itself for the kernel before it (launch_after).
bool starts_early(const void* kernel);

// Why no kernel runs on the current device, in one sentence without its full stop ("" if some do): no driver, too old
// a driver, no GPU, too old a GPU, a build without code for it.
std::string why_not_this_device();
bool has_code_for_this_device();
bool has_clusters();  // whether that code was compiled for compute capability 9.0 or later

}  // namespace xformers::cuda
