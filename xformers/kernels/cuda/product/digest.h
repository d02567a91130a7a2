// A number that two results share if, and as good as only if, their bits are the same.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace xformers::cuda {

// *sum (device memory) = digest of `bytes` bytes, a multiple of 16.
void digest(const void* data, int64_t bytes, uint64_t* sum, cudaStream_t stream);

}  // namespace xformers::cuda
