// The sum over 16-byte pieces of a mix of each with its place: the order of additions does not matter.
#include "xformers/kernels/cuda/base/launch.h"
#include "xformers/kernels/cuda/product/digest.h"

namespace xformers::cuda {
namespace {

constexpr int kThreads = 256, kBlocksPerMultiprocessor = 8;

struct Args {
  const uint4* data;
  int64_t count;
  unsigned long long* sum;
};

__device__ __forceinline__ uint64_t mixed(uint64_t x) {  // a bijection in which every bit in moves many bits out
  x = (x ^ (x >> 31)) * 0x9E3779B97F4A7C15u;
  return (x ^ (x >> 29)) * 0xBF58476D1CE4E5B9u;
}

__global__ void __launch_bounds__(kThreads) digest_kernel(const __grid_constant__ Args args) {
  uint64_t sum = 0;
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < args.count; i += step) {
    const uint4 piece = args.data[i];
    const uint64_t first = uint64_t{piece.y} << 32 | piece.x, second = uint64_t{piece.w} << 32 | piece.z;
    sum += mixed(mixed(mixed(static_cast<uint64_t>(i)) ^ first) ^ second);
  }
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
  if (threadIdx.x % 32 == 0) atomicAdd(args.sum, static_cast<unsigned long long>(sum));
}

}  // namespace

void digest(const void* data, int64_t bytes, uint64_t* sum, cudaStream_t stream) {
  XFORMERS_CUDA_CHECK(cudaMemsetAsync(sum, 0, sizeof(*sum), stream));
  launch<0>(digest_kernel, int64_t{kBlocksPerMultiprocessor} * current_device().multiprocessors, 1, kThreads, stream,
            Args{.data = static_cast<const uint4*>(data),
                 .count = bytes / 16,
                 .sum = reinterpret_cast<unsigned long long*>(sum)});
}

}  // namespace xformers::cuda
