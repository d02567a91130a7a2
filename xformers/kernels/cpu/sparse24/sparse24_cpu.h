// 2:4 sparsity on the CPU. Results do not depend on the number of threads.
#pragma once

#include "xformers/kernels/cpu/base/parallel_for.h"
#include "xformers/kernels/params/sparse24.h"

namespace xformers::cpu {

void sparse24_pack(const Sparse24PackParams& params, const Threads& threads);
void sparse24_dense(const Sparse24DenseParams& params, const Threads& threads);
void sparse24_activation_backward(const Sparse24ActivationBwdParams& params, const Threads& threads);
void sparse24_unpack(const Sparse24UnpackParams& params, const Threads& threads);
void sparse24_product(const Sparse24ProductParams& params, const Threads& threads);

}  // namespace xformers::cpu
