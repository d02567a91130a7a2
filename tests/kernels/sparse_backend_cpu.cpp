// Every instruction set, two threads.
#include "tests/kernels/blocks_support.h"
#include "tests/kernels/sparse_backend.h"
#include "xformers/kernels/cpu/blocksparse/blocksparse_cpu.h"
#include "xformers/kernels/cpu/csr/csr_cpu.h"

namespace xformers::testing {
namespace {

const cpu::Threads kThreads{2, nullptr};

}  // namespace

void for_each_sparse_backend(const std::function<void(const std::string& name)>& body) { for_each_isa(body); }

void run_sparse(const CsrSddmmParams& params) { cpu::csr_sddmm(params, kThreads); }
void run_sparse(const CsrSpmmParams& params) { cpu::csr_spmm(params, kThreads); }
void run_sparse(const CsrSoftmaxFwdParams& params) { cpu::csr_softmax_forward(params, kThreads); }
void run_sparse(const CsrSoftmaxBwdParams& params) { cpu::csr_softmax_backward(params, kThreads); }
void run_sparse(const BlockSddParams& params) { cpu::block_sdd(params, kThreads); }
void run_sparse(const BlockDsdParams& params) { cpu::block_dsd(params, kThreads); }
void run_sparse(const BlockSoftmaxFwdParams& params) { cpu::block_softmax_forward(params, kThreads); }
void run_sparse(const BlockSoftmaxBwdParams& params) { cpu::block_softmax_backward(params, kThreads); }

}  // namespace xformers::testing
