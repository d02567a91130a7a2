// Where blocks count the tiles that they take.
#pragma once

#include <cuda_runtime_api.h>

namespace xformers::cuda {

// *count becomes 0. A kernel launched right behind it by launch_after() may begin before that is so.
void clear_count(int* count, cudaStream_t stream);

}  // namespace xformers::cuda
