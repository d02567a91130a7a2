// The gates on CPU tensors, and without data (meta).
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "xformers/kernels/cpu/swiglu/gate_cpu.h"
#include "xformers/ops/common/threads.h"
#include "xformers/ops/common/to_params.h"
#include "xformers/ops/swiglu/swiglu_op.h"

namespace xformers::ops {
namespace {

at::Tensor with_contiguous_rows(const at::Tensor& t) { return t.stride(1) == 1 || t.size(1) <= 1 ? t : t.contiguous(); }

GateRows to_rows(const at::Tensor& t) { return {.data = const_cast<void*>(t.const_data_ptr()), .stride = t.stride(0)}; }

at::Tensor gate_cpu(const at::Tensor& x1_arg, const at::Tensor& x2_arg) {
  check_gate("silu_gate", x1_arg, x2_arg);
  const at::Tensor x1 = with_contiguous_rows(x1_arg), x2 = with_contiguous_rows(x2_arg);
  at::Tensor h = at::empty(x1.sizes(), x1.options());
  cpu::gate_forward({.dtype = to_dtype(x1.scalar_type()),
                     .rows = x1.size(0),
                     .width = x1.size(1),
                     .x1 = to_rows(x1),
                     .x2 = to_rows(x2),
                     .h = to_rows(h)},
                    torch_threads());
  return h;
}

std::tuple<at::Tensor, at::Tensor> gate_backward_cpu(const at::Tensor& x1_arg, const at::Tensor& x2_arg,
                                                     const at::Tensor& dx4_arg) {
  check_gate("silu_bw_fused", x1_arg, x2_arg, &dx4_arg);
  const at::Tensor x1 = with_contiguous_rows(x1_arg), x2 = with_contiguous_rows(x2_arg),
                   dx4 = with_contiguous_rows(dx4_arg);
  at::Tensor both = at::empty({x1.size(0), 2, x1.size(1)}, x1.options()), h = at::empty(x1.sizes(), x1.options());
  cpu::gate_backward({.dtype = to_dtype(x1.scalar_type()),
                      .rows = x1.size(0),
                      .width = x1.size(1),
                      .x1 = to_rows(x1),
                      .x2 = to_rows(x2),
                      .dh = to_rows(dx4),
                      .dx1 = to_rows(both.select(1, 0)),
                      .dx2 = to_rows(both.select(1, 1)),
                      .h = to_rows(h)},
                     torch_threads());
  return {both, h};
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

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, CPU, m) {
  m.impl("silu_gate", xformers::ops::gate_cpu);
  m.impl("silu_bw_fused", xformers::ops::gate_backward_cpu);
}

TORCH_LIBRARY_IMPL(xformers, Meta, m) {
  m.impl("silu_gate", xformers::ops::gate_meta);
  m.impl("silu_bw_fused", xformers::ops::gate_backward_meta);
}
