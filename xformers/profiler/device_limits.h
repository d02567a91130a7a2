// What devices can do at most, from the makers' data sheets.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace xformers::profiler {

// Dense figures: those with sparsity, twice as high, are what a program without 2:4 sparsity can't reach.
struct DeviceLimit {
  std::string name;    // part of what the driver calls the device
  std::string source;  // where the figures stand
  int major = 0, minor = 0;
  double bytes_per_second = 0;
  // TFLOP/s of matrix products; 0 where there is no figure. f32 is TF32's from Ampere on.
  double f64 = 0, f32 = 0, f16 = 0, bf16 = 0, fp8 = 0, int8 = 0;

  double tflops(std::string_view type) const;  // of "float64", "float32", "float16", "bfloat16", "float8", "int8"
};

const std::vector<DeviceLimit>& device_limits();

// The row of this compute capability whose name is the longest part of the device's; nullptr where there is none.
const DeviceLimit* find_device_limit(const std::vector<DeviceLimit>& limits, std::string_view device, int major,
                                     int minor);

}  // namespace xformers::profiler
