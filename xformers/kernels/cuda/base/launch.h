// A checked kernel launch.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <string>

#include "xformers/kernels/cuda/base/cuda_check.h"

namespace xformers::cuda {

// kernel<<<(x, y), threads, kSmemBytes>>>(args); nothing where the grid is empty.
template <int kSmemBytes, class Args>
void launch(void (*kernel)(Args), int64_t x, int64_t y, int threads, cudaStream_t stream, const Args& args) {
  if (x == 0 || y == 0) return;
  constexpr int64_t kMaxBlocks = 0x7fffffff;
  if (x > kMaxBlocks || y > 65535) {
    throw Error("cuda: a grid of " + std::to_string(x) + " x " + std::to_string(y) +
                " blocks, expected at most 2147483647 x 65535.  Fix: cut the batch");
  }
  if constexpr (kSmemBytes > 48 * 1024) {
    XFORMERS_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSmemBytes));
  }
  kernel<<<dim3(static_cast<unsigned>(x), static_cast<unsigned>(y)), threads, kSmemBytes, stream>>>(args);
  XFORMERS_CUDA_CHECK(cudaGetLastError());
}

}  // namespace xformers::cuda
