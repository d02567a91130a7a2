// A checked kernel launch.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <string>

#include "xformers/kernels/cuda/base/cuda_check.h"
#include "xformers/kernels/cuda/base/device.h"

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
  if constexpr (kSmemBytes > 40 * 1024) {  // 48 KiB less what the kernel declares itself
    allow_shared_memory(reinterpret_cast<const void*>(kernel), kSmemBytes);
  }
  kernel<<<dim3(static_cast<unsigned>(x), static_cast<unsigned>(y)), threads, kSmemBytes, stream>>>(args);
  XFORMERS_CUDA_CHECK(cudaGetLastError());
}

// The same for a kernel that begins with wait_for_kernel_before(): its blocks may start while those of the kernel
// before it on the stream finish, which hides the launch.
template <class Args>
void launch_after(void (*kernel)(Args), int64_t x, int64_t y, int threads, cudaStream_t stream, const Args& args) {
  if (!starts_early(reinterpret_cast<const void*>(kernel))) return launch<0>(kernel, x, y, threads, stream, args);
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(x), static_cast<unsigned>(y));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = 1;
  XFORMERS_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, args));
}

#if defined(__CUDACC__)
__device__ __forceinline__ void wait_for_kernel_before() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}
#endif

}  // namespace xformers::cuda
