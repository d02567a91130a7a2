// SwiGLU's gate on the CPU.
#pragma once

#include "xformers/kernels/cpu/base/parallel_for.h"
#include "xformers/kernels/params/gate.h"

namespace xformers::cpu {

void gate_forward(const GateFwdParams& params, const Threads& threads);
void gate_backward(const GateBwdParams& params, const Threads& threads);

}  // namespace xformers::cpu
