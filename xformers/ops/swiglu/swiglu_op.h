// The operators of SwiGLU as typed functions.
#pragma once

#include <tuple>

#include "xformers/ops/common/arguments.h"

namespace xformers::ops {

// Whole layers. The forward operators also return x1x2 [rows, 2, hidden], which backward needs; the differentiable
// ones, swiglu_fused and swiglu_packedw, return the result alone.
using SwigluFused = at::Tensor(const at::Tensor& x, const at::Tensor& w1, const OptionalTensor& b1,
                               const at::Tensor& w2, const OptionalTensor& b2, const at::Tensor& w3,
                               const OptionalTensor& b3);
using SwigluPackedw = at::Tensor(const at::Tensor& x, const at::Tensor& w1w2, const OptionalTensor& b1b2,
                                 const at::Tensor& w3, const OptionalTensor& b3);
using SwigluForward = std::tuple<at::Tensor, at::Tensor>(const at::Tensor& x, const at::Tensor& w1,
                                                         const OptionalTensor& b1, const at::Tensor& w2,
                                                         const OptionalTensor& b2, const at::Tensor& w3,
                                                         const OptionalTensor& b3);
// (dx, dw1w2 [2, hidden, in], db1b2 [2, hidden], dw3, db3); shape [0] where not needed.
using SwigluBackward = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>(
    const at::Tensor& grad_out, const at::Tensor& x, const at::Tensor& x1x2, const at::Tensor& w1, const at::Tensor& w2,
    const at::Tensor& w3, bool need_dx, bool need_dw1w2, bool need_db1b2, bool need_dw3, bool need_db3);

// The same, with dx1dx2 left in x1x2's memory.
using SwigluBackwardInplace = SwigluBackward;  // swiglu_backward_

// Gates, with a kernel per device.
using SiluGate = at::Tensor(const at::Tensor& x1, const at::Tensor& x2);
// (dx1dx2 [rows, 2, width], h)
using SiluBwFused = std::tuple<at::Tensor, at::Tensor>(const at::Tensor& x1, const at::Tensor& x2,
                                                       const at::Tensor& dx4);
// (dx1, dx2), nothing else written
using SiluGateBackward = std::tuple<at::Tensor, at::Tensor>(const at::Tensor& x1, const at::Tensor& x2,
                                                            const at::Tensor& dh);

// dx1dx2 [rows, 2, width] may be the memory of x1 and x2 (each element in its place); h, if needed, takes dh's. Returns
// the sums of dx1dx2 over the rows [2, width]; shape [0] where not needed.
using SiluGateBackwardOut = at::Tensor(const at::Tensor& x1, const at::Tensor& x2, const at::Tensor& dh,
                                       const at::Tensor& dx1dx2, bool need_h, bool need_sums);

const c10::TypedOperatorHandle<SwigluFused>& swiglu_fused_op();
const c10::TypedOperatorHandle<SwigluPackedw>& swiglu_packedw_op();
const c10::TypedOperatorHandle<SwigluForward>& swiglu_forward_op();
const c10::TypedOperatorHandle<SwigluBackward>& swiglu_backward_op();
const c10::TypedOperatorHandle<SwigluBackwardInplace>& swiglu_backward_inplace_op();
const c10::TypedOperatorHandle<SiluGate>& silu_gate_op();
const c10::TypedOperatorHandle<SiluBwFused>& silu_bw_fused_op();
const c10::TypedOperatorHandle<SiluGateBackward>& silu_gate_backward_op();
const c10::TypedOperatorHandle<SiluGateBackwardOut>& silu_gate_backward_out_op();

void check_swiglu(const at::Tensor& x, const at::Tensor& w1, const OptionalTensor& b1, const at::Tensor& w2,
                  const OptionalTensor& b2, const at::Tensor& w3, const OptionalTensor& b3);
void check_gate(const char* where, const at::Tensor& x1, const at::Tensor& x2, const at::Tensor* dx4 = nullptr,
                const char* dx4_name = "dx4");
void check_gate_backward_out(const at::Tensor& x1, const at::Tensor& x2, const at::Tensor& dh,
                             const at::Tensor& dx1dx2);

}  // namespace xformers::ops
