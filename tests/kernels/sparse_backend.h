// Where the tests of sparse rows and blocks run: sparse_backend_cpu.cpp or sparse_backend_cuda.cpp. Parameters point to
// host memory.
#pragma once

#include <functional>
#include <string>

#include "xformers/kernels/params/blocksparse.h"
#include "xformers/kernels/params/csr.h"

namespace xformers::testing {

// body(name) for every set of kernels that this machine has.
void for_each_sparse_backend(const std::function<void(const std::string& name)>& body);

void run_sparse(const CsrSddmmParams& params);
void run_sparse(const CsrSpmmParams& params);
void run_sparse(const CsrSoftmaxFwdParams& params);
void run_sparse(const CsrSoftmaxBwdParams& params);
void run_sparse(const BlockSddParams& params);
void run_sparse(const BlockDsdParams& params);
void run_sparse(const BlockSoftmaxFwdParams& params);
void run_sparse(const BlockSoftmaxBwdParams& params);

}  // namespace xformers::testing
