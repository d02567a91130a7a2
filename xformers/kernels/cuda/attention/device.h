// What the current device offers.
#pragma once

namespace xformers::cuda {

struct DeviceProperties {
  int multiprocessors = 0;
  int smem_per_block = 0;  // bytes, after opting in
};
const DeviceProperties& current_device();  // read once per device

}  // namespace xformers::cuda
