// The gates on CPU tensors, and without data (meta).
#include <ATen/ops/sum.h>
#include <torch/library.h>

#include "xformers/kernels/cpu/swiglu/gate_cpu.h"
#include "xformers/ops/common/threads.h"
#include "xformers/ops/swiglu/swiglu_run.h"

namespace xformers::ops {
namespace {

at::Tensor gate_cpu(const at::Tensor& x1, const at::Tensor& x2) {
  return run_gate(x1, x2, [](const GateFwdParams& params) { cpu::gate_forward(params, torch_threads()); });
}

std::tuple<at::Tensor, at::Tensor> gate_backward_cpu(const at::Tensor& x1, const at::Tensor& x2,
                                                     const at::Tensor& dx4) {
  return run_gate_backward(x1, x2, dx4,
                           [](const GateBwdParams& params) { cpu::gate_backward(params, torch_threads()); });
}

std::tuple<at::Tensor, at::Tensor> gate_backward_apart_cpu(const at::Tensor& x1, const at::Tensor& x2,
                                                           const at::Tensor& dh) {
  return run_gate_backward_apart(x1, x2, dh,
                                 [](const GateBwdParams& params) { cpu::gate_backward(params, torch_threads()); });
}

at::Tensor gate_backward_out_cpu(const at::Tensor& x1, const at::Tensor& x2, const at::Tensor& dh,
                                 const at::Tensor& dx1dx2, bool need_h, bool need_sums) {
  check_gate_backward_out(x1, x2, dh, dx1dx2);
  run_gate_backward(x1, x2, dh, dx1dx2.select(1, 0), dx1dx2.select(1, 1), need_h ? dh : at::Tensor(),
                    [](const GateBwdParams& params) { cpu::gate_backward(params, torch_threads()); });
  return need_sums ? dx1dx2.sum(0) : at::empty({0}, x1.options());
}

at::Tensor gate_meta(const at::Tensor& x1, const at::Tensor& x2) {
  check_gate("silu_gate", x1, x2);
  return at::empty_symint(x1.sym_sizes(), x1.options());
}

std::tuple<at::Tensor, at::Tensor> gate_backward_meta(const at::Tensor& x1, const at::Tensor& x2,
                                                      const at::Tensor& dx4) {
  check_gate("silu_bw_fused", x1, x2, &dx4);
  return {at::empty_symint({x1.sym_size(0), 2, x1.sym_size(1)}, x1.options()),
          at::empty_symint(x1.sym_sizes(), x1.options())};
}

std::tuple<at::Tensor, at::Tensor> gate_backward_apart_meta(const at::Tensor& x1, const at::Tensor& x2,
                                                            const at::Tensor& dh) {
  check_gate("silu_gate_backward", x1, x2, &dh, "dh");
  return {at::empty_symint(x1.sym_sizes(), x1.options()), at::empty_symint(x1.sym_sizes(), x1.options())};
}

at::Tensor gate_backward_out_meta(const at::Tensor& x1, const at::Tensor& x2, const at::Tensor& dh,
                                  const at::Tensor& dx1dx2, bool, bool need_sums) {
  check_gate_backward_out(x1, x2, dh, dx1dx2);
  return need_sums ? at::empty_symint({2, x1.sym_size(1)}, x1.options()) : at::empty({0}, x1.options());
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, CPU, m) {
  m.impl("silu_gate", xformers::ops::gate_cpu);
  m.impl("silu_bw_fused", xformers::ops::gate_backward_cpu);
  m.impl("silu_gate_backward", xformers::ops::gate_backward_apart_cpu);
  m.impl("silu_gate_backward_out", xformers::ops::gate_backward_out_cpu);
}

TORCH_LIBRARY_IMPL(xformers, Meta, m) {
  m.impl("silu_gate", xformers::ops::gate_meta);
  m.impl("silu_bw_fused", xformers::ops::gate_backward_meta);
  m.impl("silu_gate_backward", xformers::ops::gate_backward_apart_meta);
  m.impl("silu_gate_backward_out", xformers::ops::gate_backward_out_meta);
}
