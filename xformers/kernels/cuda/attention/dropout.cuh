// What is dropped: the stream of base/philox.h, bit for bit. A call serves the eight keys that one lane holds of a row
// of accumulators [rows, 32 keys], so that no lane draws for another; where scores are transposed, two lanes share a
// call.
#pragma once

#include <cstdint>

#include "xformers/kernels/base/philox.h"
#include "xformers/kernels/params/attention.h"

namespace xformers::cuda {

// Where everything is dropped, the factor of what is kept is 0 and nothing depends on the draws.
inline double kept_factor(const Dropout& dropout) { return dropout.p < 1 ? 1 / (1 - dropout.p) : 0; }

struct DropoutDraws {
  PhiloxKey philox;
  uint32_t threshold;  // of 16-bit draws: those below are dropped

  __device__ explicit DropoutDraws(const Dropout& dropout) {
    uint64_t seed = dropout.philox_seed, from = dropout.philox_offset;
    if (dropout.device_state) seed = dropout.device_state[0], from = dropout.device_state[1];
    philox = philox_key(seed, from);
    threshold = drop_threshold(dropout.p);
  }

  // The draws of keys block32 * 32 + pair * 2 + 8 * word + half.
  __device__ PhiloxWords draw(uint32_t block32, uint32_t pair, uint32_t query, uint32_t sequence_head) const {
    return attention_draws(philox, sequence_head, query, block32, pair);
  }
  // Two draws of a word compare without being unpacked: moved to or left in the upper half, above what decides nothing.
  __device__ bool keeps_low(uint32_t word) const { return word << 16 >= threshold << 16; }
  __device__ bool keeps_high(uint32_t word) const { return word >= threshold << 16; }
  __device__ bool keeps(int key, uint32_t query, uint32_t sequence_head) const {
    return attention_draw(philox, sequence_head, query, static_cast<uint32_t>(key)) >= threshold;
  }
};

// A lane's part of accumulators [16 rows, 32 keys]: four fragments of eight keys. Row 0 is the lane's row lane / 4, row
// 1 the one eight below; `key` is a multiple of 32.
class AccumulatorDraws {
 public:
  __device__ AccumulatorDraws(const DropoutDraws& draws, int key, const uint32_t (&query)[2],
                              const uint32_t (&sequence_head)[2])
      : draws_(draws) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      words_[row] = draws.draw(static_cast<uint32_t>(key) / 32, threadIdx.x % 4, query[row], sequence_head[row]);
    }
  }
  __device__ bool keeps(int fragment, int element) const {
    const uint32_t word = words_[element / 2].word[fragment];
    return element % 2 ? draws_.keeps_high(word) : draws_.keeps_low(word);
  }

 private:
  const DropoutDraws& draws_;
  PhiloxWords words_[2];
};

// A lane's part of transposed accumulators [32 keys, 8 queries]: two fragments of sixteen keys. Lanes l and l ^ 4 hold
// the two keys of the same pairs: each draws for one of their two queries and hands over the half that it doesn't need.
// `key` is a multiple of 32.
class TransposedDraws {
 public:
  __device__ TransposedDraws(const DropoutDraws& draws, int key, uint32_t query, uint32_t sequence_head)
      : draws_(draws) {
    const uint32_t lane = threadIdx.x % 32, odd = lane / 4 % 2;
    const PhiloxWords drawn =
        draws.draw(static_cast<uint32_t>(key) / 32, lane / 8, query + lane % 4 * 2 + odd, sequence_head);
    const uint32_t low = 0x5410, high = 0x7632;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t a = drawn.word[2 * i], b = drawn.word[2 * i + 1];
      const uint32_t mine = __byte_perm(a, b, odd ? high : low);
      const uint32_t theirs = __shfl_xor_sync(0xffffffffu, __byte_perm(a, b, odd ? low : high), 4);
      pairs_[0][i] = odd ? theirs : mine;
      pairs_[1][i] = odd ? mine : theirs;
    }
  }
  __device__ bool keeps(int fragment, int element) const {
    const uint32_t pair = pairs_[element % 2][fragment];
    return element / 2 ? draws_.keeps_high(pair) : draws_.keeps_low(pair);
  }

 private:
  const DropoutDraws& draws_;
  uint32_t pairs_[2][2];  // [query][fragment]: keys of the upper and, in the high half, the lower eight rows
};

}  // namespace xformers::cuda
