// Sums in an order (args.turns): key tiles add to a block of queries one after the other, in the order in which they
// are launched, so that gradients are the same bits every time. A block's number says how many have added to it.
//
// Two orders in which nobody waits for long under a causal mask, whose later tiles have less to do: from the first tile
// to the last, each from the last queries down to its diagonal; from the last tile to the first, each from its diagonal
// up, where those before it began further up. The latter has no waits at all once tiles began together.
#pragma once

#include "xformers/kernels/cuda/attention/mask.cuh"

namespace xformers::cuda {

// How many tiles of `tile_keys` add to a block's `queries` before the one that begins with `first_key`.
__device__ __forceinline__ int turn_from_first(const Band& band, Range queries, int first_key, int tile_keys) {
  return first_key / tile_keys - band.key_range(queries).begin / tile_keys;
}
__device__ __forceinline__ int turn_from_last(const Band& band, Range queries, int first_key, int tile_keys) {
  return (band.key_range(queries).end - 1) / tile_keys - first_key / tile_keys;
}

// By one thread. Those that it waits for were launched before it.
__device__ __forceinline__ void await_turn(const int* number, int mine) {
  while (*static_cast<const volatile int*>(number) < mine) __nanosleep(20);
  __threadfence();
}

}  // namespace xformers::cuda
