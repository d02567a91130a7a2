// Sums in an order (args.turns): key tiles add to a block of queries one after the other, in the order in which they
// are launched, so that gradients are the same bits every time. A block's number says how many have added to it.
//
// Under a causal mask tiles walk from the last queries to the first: a tile would else wait for all of those before it,
// which have more to do.
#pragma once

#include "xformers/kernels/cuda/attention/mask.cuh"

namespace xformers::cuda {

// How many tiles of `tile_keys` add to a block's `queries` before the one that begins with `first_key`.
__device__ __forceinline__ int turn_of(const Band& band, Range queries, int first_key, int tile_keys) {
  return first_key / tile_keys - band.key_range(queries).begin / tile_keys;
}

// By one thread. Those that it waits for were launched before it.
__device__ __forceinline__ void await_turn(const int* number, int mine) {
  while (*static_cast<const volatile int*>(number) < mine) __nanosleep(20);
  __threadfence();
}

}  // namespace xformers::cuda
