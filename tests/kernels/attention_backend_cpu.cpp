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

}  // namespace xformers::testing
