// What is dropped, for transposed scores. A lane holds keys lane / 4 + 0, 8, 16, 24 of 32 and two queries of each query
// tile. One Philox call (base/philox.h) gives the draws of these keys and of their neighbours key ^ 1 for one query:
// the two lanes that hold both make one call each per query tile, and exchange what is kept as bits.
#pragma once

#include <cstdint>

#include "xformers/kernels/base/philox.h"
#include "xformers/kernels/params/attention.h"

namespace xformers::cuda::sm80 {

// Read once per block: the state may be in global memory.
struct DropoutState {
  PhiloxKey philox;
  uint32_t threshold, sequence_head;  // threshold where p = 1: any, what is kept is multiplied by 0
};
__device__ __forceinline__ DropoutState dropout_state(const Dropout& dropout, uint32_t sequence_head) {
  const bool on_device = dropout.device_state != nullptr;
  return {philox_key(on_device ? dropout.device_state[0] : dropout.philox_seed,
                     on_device ? dropout.device_state[1] : dropout.philox_offset),
          drop_threshold(dropout.p), sequence_head};
}

// What is kept of a lane's scores[k][m][i].
class KeptScores {
  uint32_t even_query_ = 0, odd_query_ = 0;  // bytes: query tiles; in a byte, bits 0, 2, 4, 6: keys + 0, 8, 16, 24

 public:
  // This lane's draws of query tile m, of 32 keys from `key` and queries from `query`. May stand between products.
  __device__ __forceinline__ void draw(int m, const DropoutState& state, int key, int query) {
    const int lane = threadIdx.x % 32, odd = lane / 4 & 1;
    const PhiloxWords words = attention_draws(state.philox, state.sequence_head, query + m * 8 + lane % 4 * 2 + odd,
                                              static_cast<uint32_t>(key) / 32, lane / 8);
#pragma unroll
    for (int w = 0; w < 4; ++w) {  // bits 2 w + half: draw `half` of word w
      if (half_word(words.word[w], 0) >= state.threshold) even_query_ |= 1u << (m * 8 + w * 2);
      if (words.word[w] >= state.threshold << 16) even_query_ |= 2u << (m * 8 + w * 2);
    }
  }
  // After all draws.
  __device__ __forceinline__ void exchange() {
    const uint32_t mine = even_query_, other = __shfl_xor_sync(0xffffffffu, mine, 4);  // the lane of key ^ 1
    const int odd = threadIdx.x / 4 & 1;
    even_query_ = (odd ? other : mine) >> odd;
    odd_query_ = (odd ? mine : other) >> odd;
  }
  __device__ __forceinline__ bool keeps(int k, int m, int i) const {
    return (i & 1 ? odd_query_ : even_query_) & 1u << (m * 8 + (2 * k + i / 2) * 2);
  }
};

}  // namespace xformers::cuda::sm80
