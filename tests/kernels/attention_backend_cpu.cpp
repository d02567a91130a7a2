#include "tests/kernels/attention_backend.h"
#include "xformers/kernels/cpu/attention/attention_cpu.h"

namespace xformers::testing {

void run_forward(const AttentionFwdParams& params, int threads) { cpu::attention_forward(params, {threads, nullptr}); }
void run_backward(const AttentionBwdParams& params, int threads) {
  cpu::attention_backward(params, {threads, nullptr});
}

std::string last_kernels() {
  return std::string(cpu::last_forward_kernel()) + ", " + std::string(cpu::last_backward_kernel());
}

std::vector<std::string> forward_kernels() { return cpu::forward_kernels(); }
std::vector<std::string> backward_kernels() { return cpu::backward_kernels(); }

}  // namespace xformers::testing
