// Where the attention tests run: the test program links one implementation, for the CPU or for CUDA. Params point to
// host memory in both.
#pragma once

#include <string>
#include <vector>

#include "xformers/kernels/params/attention.h"

namespace xformers::testing {

void run_forward(const AttentionFwdParams& params, int threads);
void run_backward(const AttentionBwdParams& params, int threads);

// The kernels that ran last: "fwd_sm80, bwd_sm80".
std::string last_kernels();

// All there are, best first.
std::vector<std::string> forward_kernels();
std::vector<std::string> backward_kernels();

}  // namespace xformers::testing
