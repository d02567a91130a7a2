// The attention operators on CPU tensors.
#include "xformers/kernels/cpu/attention/attention_cpu.h"

#include "xformers/ops/attention/attention_run.h"
#include "xformers/ops/common/threads.h"

namespace xformers::ops {
namespace {

AttentionResult forward_cpu(AttentionArgs& args) {
  return run_forward(args, [](const AttentionFwdParams& params) { cpu::attention_forward(params, torch_threads()); });
}

void backward_kernel(const AttentionBwdParams& params) { cpu::attention_backward(params, torch_threads()); }

AttentionGradients backward_cpu(const AttentionGradArgs& args) { return run_backward(args, backward_kernel); }

AttentionStackedGradients backward_stacked_cpu(const AttentionBackwardStacked& args) {
  return run_backward_stacked(args, backward_kernel);
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, CPU, m) {
  using namespace xformers::ops;
  implement<forward_cpu>(m);
  implement<backward_cpu>(m);
  implement<backward_stacked_cpu>(m);
}
