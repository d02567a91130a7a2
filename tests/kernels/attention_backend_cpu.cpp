#include "tests/kernels/attention_backend.h"
#include "xformers/kernels/cpu/attention/attention_cpu.h"

namespace xformers::testing {
namespace {

// Those of `names` that have nothing against a single query of some dtype.
template <class Params, class WhyNot>
std::vector<std::string> runnable(const std::vector<std::string>& names, const WhyNot& why_not) {
  std::vector<std::string> result;
  for (const std::string& name : names) {
    bool runs = false;
    for (DType dtype : {DType::kFloat32, DType::kFloat64, DType::kBFloat16, DType::kFloat16}) {
      Params params;
      params.shape = {.dtype = dtype, .batch = 1, .seqlen_q = 1, .seqlen_k = 1, .head_dim = 8, .head_dim_v = 8};
      runs = runs || why_not(name, params).empty();
    }
    if (runs) result.push_back(name);
  }
  return result;
}

}  // namespace

void run_forward(const AttentionFwdParams& params, int threads) { cpu::attention_forward(params, {threads, nullptr}); }
void run_backward(const AttentionBwdParams& params, int threads) {
  cpu::attention_backward(params, {threads, nullptr});
}

std::vector<std::string> forward_kernels() {
  return runnable<AttentionFwdParams>(cpu::forward_kernels(), cpu::why_not_forward);
}
std::vector<std::string> backward_kernels() {
  return runnable<AttentionBwdParams>(cpu::backward_kernels(), cpu::why_not_backward);
}
std::string last_forward_kernel() { return std::string(cpu::last_forward_kernel()); }
std::string last_backward_kernel() { return std::string(cpu::last_backward_kernel()); }

std::string last_kernels() {
  return std::string(cpu::last_forward_kernel()) + ", " + std::string(cpu::last_backward_kernel());
}

}  // namespace xformers::testing
