// Operators through which Python asks what the kernels can do here.
#include <torch/library.h>

#include <string>
#include <vector>

#include "xformers/kernels/cpu/attention/attention_cpu.h"
#include "xformers/kernels/cpu/base/isa_choice.h"
#include "xformers/ops/attention/contracts/reasons.h"

namespace {

std::vector<std::string> cpu_isas() { return xformers::cpu::available_isa_names(); }

std::vector<std::string> attention_kernels(bool backward) {
  return backward ? xformers::cpu::backward_kernels() : xformers::cpu::forward_kernels();
}

std::string last_attention_kernel(bool backward) {
  return std::string(backward ? xformers::cpu::last_backward_kernel() : xformers::cpu::last_forward_kernel());
}

std::vector<std::string> attention_devices() {
  std::vector<std::string> devices;
  for (const auto device : {at::kCPU, at::kCUDA}) {
    if (xformers::ops::has_attention_kernels(device)) devices.push_back(at::Device(device).str());
  }
  return devices;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  m.def("cpu_isas() -> str[]", cpu_isas);                                       // of this machine, in rising order
  m.def("attention_kernels(bool backward=False) -> str[]", attention_kernels);  // of the CPU, best first
  m.def("last_attention_kernel(bool backward=False) -> str", last_attention_kernel);  // of this thread's last call
  m.def("attention_devices() -> str[]", attention_devices);  // types of device that this build has kernels for
}
