// In which order tiles are launched: a few heads at a time, and tile after tile within them, so that those that have
// most to do under a causal mask come first and short ones fill the end.
#pragma once

#include <cstdint>

#include "xformers/kernels/cuda/attention/seqlen.cuh"
#include "xformers/kernels/cuda/base/device.h"

namespace xformers::cuda::sm80_fp32 {

// Tiles for two turns of all blocks that run at a time, or more heads if their shared bytes fit in the cache.
inline int heads_at_once(int64_t heads, int64_t tiles, int blocks_per_sm, int64_t shared_bytes) {
  constexpr int64_t kCacheBytes = 24 << 20;
  const int64_t at_work = int64_t{current_device().multiprocessors} * blocks_per_sm;
  const int64_t fill = 2 * at_work / (tiles > 0 ? tiles : 1), fit = kCacheBytes / (shared_bytes + 1);
  return static_cast<int>(clamp_to<int64_t>(fill > fit ? fill : fit, 1, heads > 0 ? heads : 1));
}

struct LaunchPlace {
  int64_t head, tile;
};
__device__ __forceinline__ LaunchPlace launch_place(int64_t tiles, int heads_at_once) {
  const int64_t heads = gridDim.x / tiles, turn = blockIdx.x / (heads_at_once * tiles);
  const int64_t rest = blockIdx.x - turn * heads_at_once * tiles, first = turn * heads_at_once;
  const int64_t here = heads - first < heads_at_once ? heads - first : heads_at_once;
  return {first + rest % here, rest / here};
}

}  // namespace xformers::cuda::sm80_fp32
