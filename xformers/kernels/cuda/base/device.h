// What the current device offers. Plain C++.
#pragma once

#include <string>

namespace xformers::cuda {

struct DeviceProperties {
  int multiprocessors = 0;
  int smem_per_block = 0;  // bytes, after opting in
};
const DeviceProperties& current_device();  // read once per device

// Why no kernel runs on the current device ("" if some do): no GPU, driver too old, architecture not built.
std::string why_not_this_device();

}  // namespace xformers::cuda
