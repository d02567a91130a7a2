// What is dropped: the attention stream of base/philox.h, bit for bit.
#pragma once

#include <cstdint>

#include "xformers/kernels/base/philox.h"
#include "xformers/kernels/cuda/attention/fragment.cuh"
#include "xformers/kernels/params/attention.h"

namespace xformers::cuda {

// The key of the stream. Read once per block: the state may be in global memory.
__device__ __forceinline__ PhiloxKey dropout_key(const Dropout& dropout) {
  const bool on_device = dropout.device_state != nullptr;
  return philox_key(on_device ? dropout.device_state[0] : dropout.philox_seed,
                    on_device ? dropout.device_state[1] : dropout.philox_offset);
}

// Of one element.
__device__ __forceinline__ bool keeps(const PhiloxKey& philox, const DropRule& rule, uint32_t sequence_head, int query,
                                      int key) {
  const auto q = static_cast<uint32_t>(query), k = static_cast<uint32_t>(key);
  const KeptWords kept = attention_kept(philox, rule, sequence_head, q / 32, q % 8, k / 32, k % 8);
  const bool odd = q & 8, upper = q & 16;  // which word: no array that is indexed at run time
  const uint32_t low = odd ? kept.word[1] : kept.word[0], high = odd ? kept.word[3] : kept.word[2];
  return (upper ? high : low) >> (k % 32 / 8 * 8 + 7) & 1;
}

// Four bytes out of the eight of (a, b), each 0x00 or 0xff as its sign says. (__byte_perm does not pass on bit 3 of the
// selector's digits.)
__device__ __forceinline__ uint32_t spread_signs(uint32_t a, uint32_t b, uint32_t selector) {
  uint32_t mask;
  asm("prmt.b32 %0, %1, %2, %3;\n" : "=r"(mask) : "r"(a), "r"(b), "r"(selector | 0x8888));
  return mask;
}

// What is kept of a lane's part of accumulators [32 queries, 32 keys], or, transposed, of [32 keys, 32 queries]: four
// rows lane / 4 + 0, 8, 16, 24, and in each eight columns lane % 4 * 2 and the next. A call of the stream serves the
// sixteen elements of either column, in all four eights: no lane draws for another. kQueries is 16 where a warp has no
// more of the 32.
template <int kQueries, bool kTransposed>
class KeptByLane {
  static_assert(kQueries == 16 || kQueries == 32);
  uint32_t kept_[2][kQueries / 8];  // bytes: eights of keys

 public:
  // Of column i. `key` is a multiple of 32, `query` of kQueries.
  __device__ __forceinline__ void draw(int i, const PhiloxKey& philox, const DropRule& rule, uint32_t sequence_head,
                                       int query, int key) {
    const uint32_t row = threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2 + i;
    const KeptWords drawn =
        attention_kept(philox, rule, sequence_head, static_cast<uint32_t>(query) / 32, kTransposed ? column : row,
                       static_cast<uint32_t>(key) / 32, kTransposed ? row : column);
#pragma unroll
    for (int eight = 0; eight < kQueries / 8; ++eight) {
      const bool second = kQueries == 16 && query % 32 != 0;
      kept_[i][eight] = second ? drawn.word[(eight + 2) % 4] : drawn.word[eight];
    }
  }

  __device__ __forceinline__ bool keeps(int i, int eight_queries, int eight_keys) const {
    return kept_[i][eight_queries] >> (eight_keys * 8 + 7) & 1;
  }
  // The same in every bit.
  __device__ __forceinline__ uint32_t mask(int i, int eight_queries, int eight_keys) const {
    return spread_signs(kept_[i][eight_queries], 0, 0x1111 * eight_keys);
  }
  // Four bytes of two eights of queries, as __byte_perm selects them.
  __device__ __forceinline__ uint32_t bytes(int i, int eight_queries, uint32_t selector) const {
    return __byte_perm(kept_[i][eight_queries], kept_[i][eight_queries + 1], selector);
  }
  // Both columns, 16 bits each.
  __device__ __forceinline__ uint32_t pair_mask(int eight_queries, int eight_keys) const {
    return spread_signs(kept_[0][eight_queries], kept_[1][eight_queries], 0x4400 + 0x1111 * eight_keys);
  }
};

// What is dropped of a fragment [queries, keys] becomes 0. first_query is a multiple of 16 * kRowTiles, first_key of
// 32; rows are queries.
template <int kRowTiles, int kKeyTiles>
__device__ __forceinline__ void drop(Fragment<kRowTiles, kKeyTiles>& x, const PhiloxKey& philox, const DropRule& rule,
                                     uint32_t sequence_head, int first_query, int first_key) {
  static_assert(kKeyTiles % 4 == 0);
#pragma unroll
  for (int n = 0; n < kKeyTiles; n += 4) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      KeptByLane<16 * kRowTiles, false> kept;
      kept.draw(i, philox, rule, sequence_head, first_query, first_key + n * 8);
      for_each_row<kRowTiles>([&](int r, int half) {
#pragma unroll
        for (int part = 0; part < 4; ++part)
          if (!kept.keeps(i, 2 * r + half, part)) x[r][n + part][half * 2 + i] = 0;
      });
    }
  }
}

// The same of 32 keys whose probabilities are packed: two A operands of 16 keys from `p` on.
template <int kRowTiles>
__device__ __forceinline__ void drop(uint32_t (*p)[kRowTiles][4], const PhiloxKey& philox, const DropRule& rule,
                                     uint32_t sequence_head, int first_query, int first_key) {
  KeptByLane<16 * kRowTiles, false> kept;
#pragma unroll
  for (int i = 0; i < 2; ++i) kept.draw(i, philox, rule, sequence_head, first_query, first_key);
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < 4; ++i) p[i / 2][r][i % 2 * 2 + half] &= kept.pair_mask(r * 2 + half, i);
    }
  }
}

// What is kept of a warp's transposed probabilities [16 keys, 64 queries], a bit for each of a lane's 32 elements: half
// of what the calls of 32 keys serve. Drawn ahead of them, since it depends on none.
class KeptOfKeys {
  uint32_t kept_ = 0;  // bit 7 of each byte says of one element; that of the next is bit 6, ...

 public:
  // first_query is a multiple of 64, first_key of 16.
  __device__ __forceinline__ void draw(const PhiloxKey& philox, const DropRule& rule, uint32_t sequence_head,
                                       int first_query, int first_key) {
    // Both eights of keys of a query tile, then those of the next.
    const uint32_t mine = first_key % 32 == 0 ? 0x5410 : 0x7632;
#pragma unroll
    for (int n = 0; n < 8; n += 4) {
      KeptByLane<32, true> drawn;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        drawn.draw(i, philox, rule, sequence_head, first_query + n * 8, first_key);
        kept_ |= (drawn.bytes(i, 0, mine) & 0x80808080u) >> place(i, n);
        kept_ |= (drawn.bytes(i, 2, mine) & 0x80808080u) >> place(i, n + 2);
      }
    }
  }
  // What is dropped gets a minus: so both P, none of which is below 0, and what is kept of it stay at hand.
  __device__ __forceinline__ void mark(Fragment<1, 8>& p) const {
#pragma unroll
    for (int n = 0; n < 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint32_t kept = kept_ << (24 - 8 * (n % 2 * 2 + i / 2) + place(i % 2, n));
        p[0][n][i] = __uint_as_float(__float_as_uint(p[0][n][i]) ^ (~kept & 0x80000000u));
      }
  }

 private:
  // Of column i of query tile n.
  __device__ __forceinline__ static constexpr int place(int i, int n) { return i * 4 + n / 2; }
};

}  // namespace xformers::cuda
