// Attention on NVIDIA GPUs of compute capability 8.0 and later: the two entry points, and the list of kernels behind
// them. Plain C++: streams and device memory are pointers.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "xformers/kernels/cuda/base/device.h"
#include "xformers/kernels/cuda/base/stream.h"
#include "xformers/kernels/params/attention.h"

namespace xformers::cuda {

// The first kernel of the list that has no objection, and the bytes of scratch memory that it needs for this call:
// O(batch * heads * seqlen_q * head_dim) fp32 numbers at most. XFORMERS_KERNEL=<name> forces a kernel by name
// ("fwd_simt"). Throws xformers::Error, naming every kernel and its reasons, when none fits.
struct Choice {
  int kernel = 0;  // place in the list
  size_t workspace = 0;
};
Choice choose_forward(const AttentionFwdParams& params);
Choice choose_backward(const AttentionBwdParams& params);

// Enqueues that kernel; all pointers of `params` are device memory. Nothing waits for the GPU. Throws an error naming
// the CUDA call that failed.
void attention_forward(const Choice& choice, const AttentionFwdParams& params, const Stream& stream);
void attention_backward(const Choice& choice, const AttentionBwdParams& params, const Stream& stream);

// Kernel names, best first, for listings and tests; reasons why a kernel can't run params on the current device (empty:
// it can).
std::vector<std::string> forward_kernels();
std::vector<std::string> backward_kernels();
std::vector<std::string> why_not_forward(std::string_view kernel, const AttentionFwdParams& params);
std::vector<std::string> why_not_backward(std::string_view kernel, const AttentionBwdParams& params);

// The kernel that this thread's last call ran.
std::string_view last_forward_kernel();
std::string_view last_backward_kernel();

}  // namespace xformers::cuda
