// The counter-based stream behind dropout: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
// SC 2011). One draw per attention score, addressed by where the score stands, so that every kernel on every device, in
// forward and in backward, sees the same mask whatever its tiling:
//   counter = (key / 4, query, sequence * num_heads + head, low 32 bits of offset), word = key % 4,
//   Philox key = seed, its high word xor the high 32 bits of offset.
// `query` and `key` count from the start of their own sequence. A score is kept iff draw >= drop_threshold(p).
#pragma once

#include <cstdint>

namespace xformers {

inline constexpr uint32_t kPhiloxMul0 = 0xD2511F53u, kPhiloxMul1 = 0xCD9E8D57u;
inline constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9u, kPhiloxWeyl1 = 0xBB67AE85u;
inline constexpr int kPhiloxRounds = 10;

struct PhiloxWords {
  uint32_t word[4];
};

inline constexpr PhiloxWords philox4x32(PhiloxWords counter, uint32_t key0, uint32_t key1) {
  PhiloxWords c = counter;
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t product0 = uint64_t{kPhiloxMul0} * c.word[0];
    const uint64_t product1 = uint64_t{kPhiloxMul1} * c.word[2];
    c = {{static_cast<uint32_t>(product1 >> 32) ^ c.word[1] ^ key0, static_cast<uint32_t>(product1),
          static_cast<uint32_t>(product0 >> 32) ^ c.word[3] ^ key1, static_cast<uint32_t>(product0)}};
    key0 += kPhiloxWeyl0;
    key1 += kPhiloxWeyl1;
  }
  return c;
}

// Draws below this are dropped: p in [0, 1) becomes p * 2^32, rounded down.
inline constexpr uint32_t drop_threshold(double p) { return static_cast<uint32_t>(p * 4294967296.0); }

inline constexpr uint32_t dropout_draw(uint64_t seed, uint64_t offset, uint64_t sequence_head, uint64_t query,
                                       uint64_t key) {
  const PhiloxWords words =
      philox4x32({{static_cast<uint32_t>(key / 4), static_cast<uint32_t>(query), static_cast<uint32_t>(sequence_head),
                   static_cast<uint32_t>(offset)}},
                 static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32) ^ static_cast<uint32_t>(offset >> 32));
  return words.word[key % 4];
}

}  // namespace xformers
