// A checked kernel launch.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <string>

#include "xformers/kernels/cuda/base/cuda_check.h"
#include "xformers/kernels/cuda/base/device.h"

namespace xformers::cuda {

inline void check_grid(int64_t x, int64_t y) {
  constexpr int64_t kMaxBlocks = 0x7fffffff;
  if (x > kMaxBlocks || y > 65535) {
    throw Error("cuda: a grid of " + std::to_string(x) + " x " + std::to_string(y) +
                " blocks, expected at most 2147483647 x 65535.  Fix: cut the batch");
  }
}

template <class Args>
void allow_smem(void (*kernel)(Args), int bytes) {
  if (bytes > 40 * 1024) {  // 48 KiB less what the kernel declares itself
    allow_shared_memory(reinterpret_cast<const void*>(kernel), bytes);
  }
}

// kernel<<<(x, y), threads, smem_bytes>>>(args); nothing where the grid is empty.
template <class Args>
void launch_with(void (*kernel)(Args), int64_t x, int64_t y, int threads, int smem_bytes, cudaStream_t stream,
                 const Args& args) {
  if (x == 0 || y == 0) return;
  check_grid(x, y);
  allow_smem(kernel, smem_bytes);
  kernel<<<dim3(static_cast<unsigned>(x), static_cast<unsigned>(y)), threads, smem_bytes, stream>>>(args);
  XFORMERS_CUDA_CHECK(cudaGetLastError());
}

template <int kSmemBytes, class Args>
void launch(void (*kernel)(Args), int64_t x, int64_t y, int threads, cudaStream_t stream, const Args& args) {
  launch_with(kernel, x, y, threads, kSmemBytes, stream, args);
}

// The same for a kernel that begins with wait_for_kernel_before(): its blocks may start while those of the kernel
// before it on the stream finish, which hides the launch. Blocks of one x and `cluster` neighbours along y are a
// cluster (arch/cluster.cuh), where that is more than one: of compute capability 9.0 or later.
template <class Args>
void launch_after(void (*kernel)(Args), int64_t x, int64_t y, int threads, cudaStream_t stream, const Args& args,
                  int smem_bytes = 0, int cluster = 1) {
  if (!starts_early(reinterpret_cast<const void*>(kernel))) {
    return launch_with(kernel, x, y, threads, smem_bytes, stream, args);
  }
  if (x == 0 || y == 0) return;
  check_grid(x, y);
  allow_smem(kernel, smem_bytes);
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {1, static_cast<unsigned>(cluster), 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(x), static_cast<unsigned>(y));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(smem_bytes);
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = cluster > 1 ? 2 : 1;
  XFORMERS_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, args));
}

#if defined(__CUDACC__)
// By every block: from then on blocks of a kernel that is launched after this one may start, where they find room.
__device__ __forceinline__ void let_next_kernel_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}
__device__ __forceinline__ void wait_for_kernel_before() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}
#endif

}  // namespace xformers::cuda
