// The counter-based stream behind dropout: Philox4x32-7 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
// SC 2011; seven rounds pass BigCrush, and are the fewest that do). A call gives eight draws of 16 bits. Each is
// addressed by where its element stands, so that every kernel on every device, in forward and in backward, sees the
// same mask whatever its tiling.
//
// Attention: of every 32 keys, those with the same key % 8 / 2 share a call: what one lane holds of a row of a tensor
// core's accumulators.
//   counter = (key / 32 * 4 + key % 8 / 2, query, sequence * num_heads + head, low 32 bits of offset)
//   draw    = word key % 32 / 8, its low half for even keys
// `query` and `key` count from the start of their own sequence.
//
// Matrices: eight neighbouring columns share a call.
//   counter = (column / 8, low 32 bits of row, high 32 bits of row, low 32 bits of offset)
//   draw    = word column % 8 / 2, its low half for even columns
//
// Philox key = seed, its high word xor the high 32 bits of offset. An element is kept iff draw >= drop_threshold(p).
#pragma once

#include <cstdint>

namespace xformers {

inline constexpr uint32_t kPhiloxMul0 = 0xD2511F53u, kPhiloxMul1 = 0xCD9E8D57u;
inline constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9u, kPhiloxWeyl1 = 0xBB67AE85u;
inline constexpr int kPhiloxRounds = 7;

struct PhiloxWords {
  uint32_t word[4];
};

template <int kRounds = kPhiloxRounds>
inline constexpr PhiloxWords philox4x32(PhiloxWords counter, uint32_t key0, uint32_t key1) {
  PhiloxWords c = counter;
#ifdef __CUDA_ARCH__
#pragma unroll
#endif
  for (int round = 0; round < kRounds; ++round) {
    const uint64_t product0 = uint64_t{kPhiloxMul0} * c.word[0];
    const uint64_t product1 = uint64_t{kPhiloxMul1} * c.word[2];
    c = {{static_cast<uint32_t>(product1 >> 32) ^ c.word[1] ^ key0, static_cast<uint32_t>(product1),
          static_cast<uint32_t>(product0 >> 32) ^ c.word[3] ^ key1, static_cast<uint32_t>(product0)}};
    key0 += kPhiloxWeyl0;
    key1 += kPhiloxWeyl1;
  }
  return c;
}

// Seed and offset as Philox takes them.
struct PhiloxKey {
  uint32_t key0, key1, offset;
};
inline constexpr PhiloxKey philox_key(uint64_t seed, uint64_t offset) {
  return {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32) ^ static_cast<uint32_t>(offset >> 32),
          static_cast<uint32_t>(offset)};
}

// Draws below this are dropped: p * 2^16, rounded; something is kept unless p is 1.
inline constexpr uint32_t drop_threshold(double p) {
  const uint32_t threshold = static_cast<uint32_t>(p * 65536.0 + 0.5);
  return p < 1 && threshold > 65535 ? 65535 : threshold;
}

// Draw `half` (0: low, 1: high) of a word.
inline constexpr uint32_t half_word(uint32_t word, int half) { return half ? word >> 16 : word & 0xffffu; }

// The draws of keys block32 * 32 + pair * 2 + 8 * word + half.
inline constexpr PhiloxWords attention_draws(const PhiloxKey& key, uint32_t sequence_head, uint32_t query,
                                             uint32_t block32, uint32_t pair) {
  return philox4x32({{block32 * 4 + pair, query, sequence_head, key.offset}}, key.key0, key.key1);
}
inline constexpr uint32_t attention_draw(const PhiloxKey& philox, uint64_t sequence_head, uint64_t query,
                                         uint64_t key) {
  const PhiloxWords words = attention_draws(philox, static_cast<uint32_t>(sequence_head), static_cast<uint32_t>(query),
                                            static_cast<uint32_t>(key / 32), static_cast<uint32_t>(key % 8 / 2));
  return half_word(words.word[key % 32 / 8], static_cast<int>(key % 2));
}

// The draws of columns column8 * 8 + 2 * word + half of a matrix.
inline constexpr PhiloxWords row_dropout_draws(const PhiloxKey& key, uint64_t row, uint32_t column8) {
  return philox4x32({{column8, static_cast<uint32_t>(row), static_cast<uint32_t>(row >> 32), key.offset}}, key.key0,
                    key.key1);
}
inline constexpr uint32_t row_dropout_draw(const PhiloxKey& key, uint64_t row, uint64_t column) {
  const PhiloxWords words = row_dropout_draws(key, row, static_cast<uint32_t>(column / 8));
  return half_word(words.word[column % 8 / 2], static_cast<int>(column % 2));
}

}  // namespace xformers
