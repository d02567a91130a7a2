// The gates on tensors of a device: from tensors to the parameters of its kernels.
#pragma once

#include <ATen/ops/empty.h>

#include "xformers/ops/common/to_params.h"
#include "xformers/ops/swiglu/swiglu_op.h"

namespace xformers::ops {

inline GateRows to_gate_rows(const at::Tensor& t) {
  return {.data = const_cast<void*>(t.const_data_ptr()), .stride = t.stride(0)};
}

// kernel(params) -> h
template <class Kernel>
at::Tensor run_gate(const at::Tensor& x1_arg, const at::Tensor& x2_arg, const Kernel& kernel) {
  check_gate("silu_gate", x1_arg, x2_arg);
  const at::Tensor x1 = with_contiguous_rows(x1_arg), x2 = with_contiguous_rows(x2_arg);
  at::Tensor h = at::empty(x1.sizes(), x1.options());
  kernel(GateFwdParams{.dtype = to_dtype(x1.scalar_type()),
                       .rows = x1.size(0),
                       .width = x1.size(1),
                       .x1 = to_gate_rows(x1),
                       .x2 = to_gate_rows(x2),
                       .h = to_gate_rows(h)});
  return h;
}

// kernel(params), whose results go to dx1, dx2 and h (undefined: not wanted)
template <class Kernel>
void run_gate_backward(const at::Tensor& x1_arg, const at::Tensor& x2_arg, const at::Tensor& dh_arg,
                       const at::Tensor& dx1, const at::Tensor& dx2, const at::Tensor& h, const Kernel& kernel) {
  const at::Tensor x1 = with_contiguous_rows(x1_arg), x2 = with_contiguous_rows(x2_arg),
                   dh = with_contiguous_rows(dh_arg);
  kernel(GateBwdParams{.dtype = to_dtype(x1.scalar_type()),
                       .rows = x1.size(0),
                       .width = x1.size(1),
                       .x1 = to_gate_rows(x1),
                       .x2 = to_gate_rows(x2),
                       .dh = to_gate_rows(dh),
                       .dx1 = to_gate_rows(dx1),
                       .dx2 = to_gate_rows(dx2),
                       .h = h.defined() ? to_gate_rows(h) : GateRows{}});
}

// silu_bw_fused on a device whose kernel is `kernel`.
template <class Kernel>
std::tuple<at::Tensor, at::Tensor> run_gate_backward(const at::Tensor& x1, const at::Tensor& x2, const at::Tensor& dx4,
                                                     const Kernel& kernel) {
  check_gate("silu_bw_fused", x1, x2, &dx4);
  at::Tensor both = at::empty({x1.size(0), 2, x1.size(1)}, x1.options()), h = at::empty(x1.sizes(), x1.options());
  run_gate_backward(x1, x2, dx4, both.select(1, 0), both.select(1, 1), h, kernel);
  return {both, h};
}

// silu_gate_backward likewise.
template <class Kernel>
std::tuple<at::Tensor, at::Tensor> run_gate_backward_apart(const at::Tensor& x1, const at::Tensor& x2,
                                                           const at::Tensor& dh, const Kernel& kernel) {
  check_gate("silu_gate_backward", x1, x2, &dh, "dh");
  at::Tensor dx1 = at::empty(x1.sizes(), x1.options()), dx2 = at::empty(x1.sizes(), x1.options());
  run_gate_backward(x1, x2, dh, dx1, dx2, /*h=*/at::Tensor(), kernel);
  return {dx1, dx2};
}

}  // namespace xformers::ops
