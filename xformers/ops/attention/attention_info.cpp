// Operators through which Python asks which kernels of attention there are.
#include <torch/library.h>

#include <string>
#include <vector>

#include "xformers/kernels/cpu/attention/attention_cpu.h"
#include "xformers/ops/attention/contracts/reasons.h"

namespace xformers::ops {
namespace {

std::vector<std::string> kernels(bool backward) { return backward ? cpu::backward_kernels() : cpu::forward_kernels(); }

std::string last_kernel(bool backward) {
  return std::string(backward ? cpu::last_backward_kernel() : cpu::last_forward_kernel());
}

std::vector<std::string> devices() {
  std::vector<std::string> types;
  for (const auto device : {at::kCPU, at::kCUDA}) {
    if (has_attention_kernels(device)) types.push_back(at::Device(device).str());
  }
  return types;
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  using namespace xformers::ops;
  m.def("attention_kernels(bool backward=False) -> str[]", kernels);        // of the CPU, best first
  m.def("last_attention_kernel(bool backward=False) -> str", last_kernel);  // of this thread's last call
  m.def("attention_devices() -> str[]", devices);                           // that this build has kernels for
}
