// bfloat16 autocast for as long as the object lives.
#pragma once

#include <ATen/autocast_mode.h>

#include "examples/microgpt/device.h"

namespace microgpt {

class Autocast {
 public:
  // On where compute.dtype is bfloat16.
  explicit Autocast(const ComputeOptions& compute)
      : device_(device_of(compute).type()), before_(at::autocast::is_autocast_enabled(device_)) {
    at::autocast::set_autocast_enabled(device_, compute.dtype == "bfloat16");
    at::autocast::set_autocast_dtype(device_, at::kBFloat16);
  }
  Autocast(const Autocast&) = delete;
  Autocast& operator=(const Autocast&) = delete;
  ~Autocast() {
    at::autocast::clear_cache();  // of weights in bfloat16, which the update makes stale
    at::autocast::set_autocast_enabled(device_, before_);
  }

 private:
  at::DeviceType device_;
  bool before_;
};

}  // namespace microgpt
