// Forces a kernel by name for as long as it lives.
#pragma once

#include <cstdlib>
#include <string>

namespace xformers::testing {

class ForcedKernel {
 public:
  explicit ForcedKernel(const std::string& name) { setenv("XFORMERS_KERNEL", name.c_str(), 1); }
  ~ForcedKernel() { unsetenv("XFORMERS_KERNEL"); }
  ForcedKernel(const ForcedKernel&) = delete;
  ForcedKernel& operator=(const ForcedKernel&) = delete;
};

}  // namespace xformers::testing
