// Attention on NVIDIA GPUs of compute capability 8.0 and later: the two entry points, and the list of kernels behind
// them. Plain C++: streams and device memory are pointers.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "xformers/kernels/cuda/attention/facts.h"
#include "xformers/kernels/cuda/attention/plans.h"
#include "xformers/kernels/cuda/base/device.h"
#include "xformers/kernels/cuda/base/stream.h"
#include "xformers/kernels/params/attention.h"

namespace xformers::cuda {

struct ForwardKernel;  // kernels.h
struct BackwardKernel;

// The first kernel of the list that has no objection, what it has settled about this call, and the bytes of scratch
// memory that it needs: O(batch * heads * seqlen_q * head_dim) fp32 numbers at most. XFORMERS_KERNEL=<name> forces a
// kernel by name ("fwd_simt"). Throws xformers::Error, naming every kernel and its reasons, when none fits.
struct ForwardChoice {
  const ForwardKernel& kernel;
  FwdFacts facts;
  ForwardPlan plan;
  size_t workspace = 0;
};
struct BackwardChoice {
  const BackwardKernel& kernel;
  BwdFacts facts;
  BackwardPlan plan;
  size_t workspace = 0;
};
ForwardChoice choose_forward(const AttentionFwdParams& params);
BackwardChoice choose_backward(const AttentionBwdParams& params);

// Enqueues that kernel for the same params; all their pointers are device memory. Nothing waits for the GPU. Throws an
// error naming the CUDA call that failed.
void attention_forward(const ForwardChoice& choice, const AttentionFwdParams& params, const Stream& stream);
void attention_backward(const BackwardChoice& choice, const AttentionBwdParams& params, const Stream& stream);

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
