// The gates on tensors of a device: from tensors to the parameters of its kernels. A `Device` has
//   forward(x1, params)           runs its kernel where x1 is
//   backward(x1, params)          likewise
//   backward_and_sums(params, dx1dx2, sums)   and fills `sums` of SiluGateBackwardOut, where it is defined
#pragma once

#include "xformers/kernels/params/gate.h"
#include "xformers/ops/common/to_params.h"
#include "xformers/ops/swiglu/swiglu_op.h"

namespace xformers::ops {

template <class Device>
at::Tensor run_gate(const SiluGate& args) {
  args.check();
  const at::Tensor x1 = with_unit_last_stride(args.x1), x2 = with_unit_last_stride(args.x2);
  at::Tensor h = args.empty();
  Device::forward(x1, GateFwdParams{.dtype = to_dtype(x1.scalar_type()),
                                    .rows = x1.size(0),
                                    .width = x1.size(1),
                                    .x1 = to_rows(x1),
                                    .x2 = to_rows(x2),
                                    .h = to_rows(h)});
  return h;
}

// kernel(params), whose results go to dx1, dx2 and h (undefined: not wanted)
template <class Kernel>
void run_gate_backward(const at::Tensor& x1_arg, const at::Tensor& x2_arg, const at::Tensor& dh_arg,
                       const at::Tensor& dx1, const at::Tensor& dx2, const at::Tensor& h, const Kernel& kernel) {
  const at::Tensor x1 = with_unit_last_stride(x1_arg), x2 = with_unit_last_stride(x2_arg),
                   dh = with_unit_last_stride(dh_arg);
  kernel(GateBwdParams{.dtype = to_dtype(x1.scalar_type()),
                       .rows = x1.size(0),
                       .width = x1.size(1),
                       .x1 = to_rows(x1),
                       .x2 = to_rows(x2),
                       .dh = to_rows(dh),
                       .dx1 = to_rows(dx1),
                       .dx2 = to_rows(dx2),
                       .h = to_rows(h)});
}

template <class Device>
SiluBwFused::Result run_silu_bw_fused(const SiluBwFused& args) {
  args.check();
  auto [both, h] = args.empty();
  run_gate_backward(args.x1, args.x2, args.dx4, both.select(1, 0), both.select(1, 1), h,
                    [&](const GateBwdParams& params) { Device::backward(args.x1, params); });
  return {both, h};
}

template <class Device>
SiluGateBackward::Result run_silu_gate_backward(const SiluGateBackward& args) {
  args.check();
  auto [dx1, dx2] = args.empty();
  run_gate_backward(args.x1, args.x2, args.dh, dx1, dx2, /*h=*/at::Tensor(),
                    [&](const GateBwdParams& params) { Device::backward(args.x1, params); });
  return {dx1, dx2};
}

template <class Device>
at::Tensor run_silu_gate_backward_out(const SiluGateBackwardOut& args) {
  args.check();
  at::Tensor sums = args.empty();
  run_gate_backward(args.x1, args.x2, args.dh, args.dx1dx2.select(1, 0), args.dx1dx2.select(1, 1),
                    args.need_h ? args.dh : at::Tensor(), [&](const GateBwdParams& params) {
                      Device::backward_and_sums(params, args.dx1dx2, args.need_sums ? sums : at::Tensor());
                    });
  return sums;
}

template <class Device>
void implement_gates(torch::Library& m) {
  implement<run_gate<Device>>(m);
  implement<run_silu_bw_fused<Device>>(m);
  implement<run_silu_gate_backward<Device>>(m);
  implement<run_silu_gate_backward_out<Device>>(m);
}

}  // namespace xformers::ops
