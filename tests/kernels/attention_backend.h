// Where the attention tests run: the test program links one implementation, for the CPU or for CUDA. Params point to
// host memory in both.
#pragma once

#include <string>
#include <vector>

#include "xformers/kernels/params/attention.h"

namespace xformers::testing {

void run_forward(const AttentionFwdParams& params, int threads);
void run_backward(const AttentionBwdParams& params, int threads);

// Names of the kernels that this machine can run, to be forced (forced_kernel.h), and of those that ran last.
std::vector<std::string> forward_kernels();
std::vector<std::string> backward_kernels();
std::string last_forward_kernel();
std::string last_backward_kernel();
std::string last_kernels();  // "fwd_sm80, bwd_sm80"

}  // namespace xformers::testing
