// The softmax operators on CPU tensors, and without data (meta).
#include "xformers/kernels/cpu/softmax/softmax_cpu.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "xformers/ops/common/threads.h"
#include "xformers/ops/softmax/softmax_op.h"

namespace xformers::ops {
namespace {

template <bool kLog>
at::Tensor forward_cpu(const at::Tensor& x, const OptionalTensor& mask, bool causal) {
  const SoftmaxForwardCall call = prepare_softmax(x, mask, causal, kLog);
  cpu::softmax_forward(call.params, torch_threads());
  return call.result;
}

at::Tensor backward_cpu(const at::Tensor& grad_out, const at::Tensor& out, bool causal, bool log) {
  const SoftmaxBackwardCall call = prepare_softmax_backward(grad_out, out, causal, log);
  cpu::softmax_backward(call.params, torch_threads());
  return call.result;
}

template <bool kLog>
at::Tensor forward_meta(const at::Tensor& x, const OptionalTensor& mask, bool causal) {
  check_softmax(kLog ? "log_softmax" : "softmax", x, mask, causal);
  return at::empty_symint(x.sym_sizes(), x.options());
}

at::Tensor backward_meta(const at::Tensor& grad_out, const at::Tensor& out, bool causal, bool /*log*/) {
  check_softmax_backward(grad_out, out, causal);
  return at::empty_symint(out.sym_sizes(), out.options());
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, CPU, m) {
  m.impl("softmax", xformers::ops::forward_cpu<false>);
  m.impl("log_softmax", xformers::ops::forward_cpu<true>);
  m.impl("softmax_backward", xformers::ops::backward_cpu);
}

TORCH_LIBRARY_IMPL(xformers, Meta, m) {
  m.impl("softmax", xformers::ops::forward_meta<false>);
  m.impl("log_softmax", xformers::ops::forward_meta<true>);
  m.impl("softmax_backward", xformers::ops::backward_meta);
}
