// Operators through which Python asks what the kernels can do here.
#include <torch/library.h>

#include <string>
#include <vector>

#include "xformers/kernels/cpu/attention/attention_cpu.h"
#include "xformers/kernels/cpu/base/cpu_features.h"

namespace {

std::vector<std::string> cpu_isas() { return xformers::cpu::available_isa_names(); }

std::vector<std::string> attention_kernels(bool backward) {
  return backward ? xformers::cpu::backward_kernels() : xformers::cpu::forward_kernels();
}

std::string last_attention_kernel(bool backward) {
  return std::string(backward ? xformers::cpu::last_backward_kernel() : xformers::cpu::last_forward_kernel());
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  m.def("cpu_isas() -> str[]", cpu_isas);                                       // of this machine, in rising order
  m.def("attention_kernels(bool backward=False) -> str[]", attention_kernels);  // best first
  m.def("last_attention_kernel(bool backward=False) -> str", last_attention_kernel);  // of this thread's last call
}
