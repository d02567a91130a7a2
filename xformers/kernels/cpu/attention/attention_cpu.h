// Attention on the CPU: the two entry points, and the list of kernels behind them.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "xformers/kernels/cpu/base/parallel_for.h"
#include "xformers/kernels/params/attention.h"

namespace xformers::cpu {

// Runs the first kernel of the list that has no objection. XFORMERS_KERNEL=<name> forces one by name ("fwd_amx"),
// XFORMERS_CPU_ISA=<isa> ("avx2") is the highest instruction set to use; throws xformers::Error, naming every
// kernel and its reasons, when none fits. Bit-identical results from run to run for a fixed threads.num_threads.
void attention_forward(const AttentionFwdParams& params, const Threads& threads);
void attention_backward(const AttentionBwdParams& params, const Threads& threads);

// Kernel names, best first, for listings and tests; reasons why a kernel can't run params on this machine (empty: it
// can).
std::vector<std::string> forward_kernels();
std::vector<std::string> backward_kernels();
std::vector<std::string> why_not_forward(std::string_view kernel, const AttentionFwdParams& params);
std::vector<std::string> why_not_backward(std::string_view kernel, const AttentionBwdParams& params);

// The kernel that this thread's last call ran.
std::string_view last_forward_kernel();
std::string_view last_backward_kernel();

}  // namespace xformers::cpu
