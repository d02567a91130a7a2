// What is dropped: the stream of base/philox.h, bit for bit. One Philox call gives the draws of four neighbouring keys
// of one query; lanes that hold parts of those four make one call each and exchange words.
#pragma once

#include <cstdint>

#include "xformers/kernels/params/attention.h"

namespace xformers::cuda {

struct DropoutDraws {
  uint32_t key0, key1, offset, threshold;  // threshold: draws below are dropped
  bool all;                                // p = 1

  __device__ explicit DropoutDraws(const Dropout& dropout) {
    uint64_t seed = dropout.philox_seed, from = dropout.philox_offset;
    if (dropout.device_state) seed = dropout.device_state[0], from = dropout.device_state[1];
    key0 = static_cast<uint32_t>(seed);
    key1 = static_cast<uint32_t>(seed >> 32) ^ static_cast<uint32_t>(from >> 32);
    offset = static_cast<uint32_t>(from);
    all = dropout.p >= 1;
    threshold = all ? 0xffffffffu : static_cast<uint32_t>(dropout.p * 4294967296.0);
  }

  // Draws of keys 4 * quad ... 4 * quad + 3.
  __device__ uint4 draw(uint32_t quad, uint32_t query, uint32_t sequence_head) const {
    constexpr uint32_t kMul0 = 0xD2511F53u, kMul1 = 0xCD9E8D57u, kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;
    uint4 c = {quad, query, sequence_head, offset};
    uint32_t a = key0, b = key1;
#pragma unroll
    for (int round = 0; round < 10; ++round) {
      const uint32_t high0 = __umulhi(kMul0, c.x), low0 = kMul0 * c.x, high1 = __umulhi(kMul1, c.z), low1 = kMul1 * c.z;
      c = {high1 ^ c.y ^ a, low1, high0 ^ c.w ^ b, low0};
      a += kWeyl0, b += kWeyl1;
    }
    return c;
  }
  __device__ bool keeps(uint32_t drawn) const { return !all && drawn >= threshold; }
  __device__ bool keeps(int key, uint32_t query, uint32_t sequence_head) const {
    const uint4 words = draw(static_cast<uint32_t>(key) / 4, query, sequence_head);
    const int word = key % 4;
    return keeps(word == 0 ? words.x : word == 1 ? words.y : word == 2 ? words.z : words.w);
  }
};

// 1 / (1 - p), 0 where everything is dropped.
inline double kept_factor(const Dropout& dropout) { return dropout.p < 1 ? 1 / (1 - dropout.p) : 0; }

// Accumulators of scores [16 queries, 8 keys from `key`, a multiple of 8]: whether element i is kept. Row 0 is the
// lane's row lane / 4, row 1 the one eight below.
__device__ inline void keep_accumulator(bool (&keep)[4], const DropoutDraws& draws, int key, const uint32_t (&query)[2],
                                        const uint32_t (&sequence_head)[2]) {
  const int lane = threadIdx.x % 32, odd = lane & 1;
  const uint4 mine = draws.draw(static_cast<uint32_t>(key) / 4 + (lane >> 1 & 1), odd ? query[1] : query[0],
                                odd ? sequence_head[1] : sequence_head[0]);
  const uint32_t x = __shfl_xor_sync(0xffffffffu, odd ? mine.x : mine.z, 1);
  const uint32_t y = __shfl_xor_sync(0xffffffffu, odd ? mine.y : mine.w, 1);
  keep[0] = draws.keeps(odd ? x : mine.x);
  keep[1] = draws.keeps(odd ? y : mine.y);
  keep[2] = draws.keeps(odd ? mine.z : x);
  keep[3] = draws.keeps(odd ? mine.w : y);
}

// Accumulators of transposed scores [16 keys from `key`, 8 queries from `query`]: the four lanes whose keys share a
// Philox call make one call for each of two queries and two halves of the keys.
__device__ inline void keep_transposed(bool (&keep)[4], const DropoutDraws& draws, int key, uint32_t query,
                                       uint32_t sequence_head) {
  const int lane = threadIdx.x % 32, mine = lane >> 2 & 3;
  const uint4 drawn = draws.draw(static_cast<uint32_t>(key + (mine >> 1) * 8) / 4 + (lane >> 4),
                                 query + 2 * (lane & 3) + (mine & 1), sequence_head);
  const auto word = [&](int i) { return i == 0 ? drawn.x : i == 1 ? drawn.y : i == 2 ? drawn.z : drawn.w; };
  uint32_t got[4];  // got[r]: from lane mine ^ r, which drew element mine ^ r
  got[0] = word(mine);
#pragma unroll
  for (int r = 1; r < 4; ++r) got[r] = __shfl_xor_sync(0xffffffffu, word(mine ^ r), 4 * r);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int r = i ^ mine;
    keep[i] = draws.keeps(r == 0 ? got[0] : r == 1 ? got[1] : r == 2 ? got[2] : got[3]);
  }
}

}  // namespace xformers::cuda
