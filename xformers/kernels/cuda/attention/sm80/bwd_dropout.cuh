// What is dropped, for transposed scores.
#pragma once

#include "xformers/kernels/cuda/attention/dropout.cuh"

namespace xformers::cuda::sm80 {

// Read once per block.
struct DropoutState {
  PhiloxKey philox;
  uint32_t sequence_head;
};

// What is kept of a warp's scores of 32 keys: kept.mask(i, m, eight_keys) for query i of a lane's two in query tile m.
template <int kQueryTiles>
class KeptScores : public KeptByLane<kQueryTiles * 8, true> {
 public:
  // Of 32 keys from `key` and all queries from `query`.
  __device__ __forceinline__ void draw(const DropoutState& state, const DropRule& rule, int key, int query) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
      KeptByLane<kQueryTiles * 8, true>::draw(i, state.philox, rule, state.sequence_head, query, key);
  }
};

}  // namespace xformers::cuda::sm80
