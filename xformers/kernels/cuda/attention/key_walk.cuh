// Which blocks of keys a tile's rows look at, in their order: one range so far.
#pragma once

#include "xformers/kernels/cuda/attention/mask.cuh"

namespace xformers::cuda {

// Blocks of `size` keys that have any of these keys; those that have no others.
__device__ __forceinline__ Range blocks_with(Range keys, int size) {
  return {keys.begin / size, ceil_div(keys.end, size)};
}
__device__ __forceinline__ Range blocks_inside(Range keys, int size) {
  return {ceil_div(max(keys.begin, 0), size), keys.end / size};
}

// Part `part` of num_parts of the blocks: `part_size` of them, or, where that is 0, as many as of every part. The last
// part takes what is left, since a host that knows the size knows the number of blocks but for one.
__device__ __forceinline__ Range part_of(Range blocks, int part, int num_parts, int part_size) {
  const int all = max(blocks.end - blocks.begin, 0);
  const int size = part_size > 0 ? part_size : ceil_div(all, num_parts);
  blocks.begin += part * size;
  if (part + 1 < num_parts) blocks.end = min(blocks.end, blocks.begin + size);
  return blocks;
}

}  // namespace xformers::cuda
