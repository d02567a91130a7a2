// The exceptions of the torch-free layer.
#pragma once

#include <stdexcept>
#include <string>

namespace xformers {

// What a caller asked for that can't be. An std::invalid_argument, so that it reaches Python as a ValueError.
// what() reads "<where>: <what came>, expected <what was expected>.  Fix: <how>".
class Error : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

// What a device failed to do. It reaches Python as a RuntimeError.
class DeviceError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace xformers
