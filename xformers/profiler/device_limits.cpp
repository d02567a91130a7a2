#include "xformers/profiler/device_limits.h"

namespace xformers::profiler {

double DeviceLimit::tflops(std::string_view type) const {
  struct Column {
    std::string_view name;
    double DeviceLimit::* value;
  };
  static constexpr Column kColumns[] = {{"float64", &DeviceLimit::f64}, {"float32", &DeviceLimit::f32},
                                        {"float16", &DeviceLimit::f16}, {"bfloat16", &DeviceLimit::bf16},
                                        {"float8", &DeviceLimit::fp8},  {"int8", &DeviceLimit::int8}};
  for (const Column& column : kColumns) {
    if (type == column.name) return this->*column.value;
  }
  return 0;
}

const std::vector<DeviceLimit>& device_limits() {
  static const char* const kSheet = "data sheet of the maker, dense";
  static const std::vector<DeviceLimit> kLimits = {
      // name, source, capability, bytes/s, f64, f32 (TF32), f16, bf16, fp8, int8
      {"B200", kSheet, 10, 0, 7.7e12, 37, 1125, 2250, 2250, 4500, 4500},
      {"H200", kSheet, 9, 0, 4.8e12, 67, 494.5, 989, 989, 1979, 1979},
      {"H100 PCIe", kSheet, 9, 0, 2.0e12, 51, 378, 756, 756, 1513, 1513},
      {"H100", kSheet, 9, 0, 3.35e12, 67, 494, 989, 989, 1979, 1979},
      {"L40S", kSheet, 8, 9, 0.864e12, 0, 183, 362, 362, 733, 733},
      {"L4", kSheet, 8, 9, 0.3e12, 0, 60, 121, 121, 242, 242},
      {"A100", kSheet, 8, 0, 2.0e12, 19.5, 156, 312, 312, 0, 624},
      {"A30", kSheet, 8, 0, 0.933e12, 10.3, 82, 165, 165, 0, 330},
      {"T4", kSheet, 7, 5, 0.3e12, 0, 8.1, 65, 0, 0, 130},
      {"V100", kSheet, 7, 0, 0.9e12, 7.8, 15.7, 125, 0, 0, 0},
      {"P100", kSheet, 6, 0, 0.732e12, 5.3, 10.6, 21.2, 0, 0, 0},
  };
  return kLimits;
}

const DeviceLimit* find_device_limit(const std::vector<DeviceLimit>& limits, std::string_view device, int major,
                                     int minor) {
  const DeviceLimit* best = nullptr;
  for (const DeviceLimit& limit : limits) {
    const bool matches =
        limit.major == major && limit.minor == minor && device.find(limit.name) != std::string_view::npos;
    if (matches && (!best || limit.name.size() > best->name.size())) best = &limit;
  }
  return best;
}

}  // namespace xformers::profiler
