// The counter-based stream behind dropout: Philox4x32-7 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
// SC 2011; seven rounds pass BigCrush, and are the fewest that do). Each draw is addressed by where its element stands,
// so that every kernel on every device, in forward and in backward, sees the same mask whatever its tiling.
// Philox key = seed, its high word xor the high 32 bits of offset.
//
// Attention: a call gives sixteen draws of 8 bits, for the queries of 32 with the same query % 8 and the keys of 32
// with the same key % 8: what one lane holds of a tensor core's accumulators, be they scores [queries, keys] or [keys,
// queries].
//   counter = (key / 32 * 8 + key % 8, query / 32 * 8 + query % 8, sequence * num_heads + head, low 32 bits of offset)
//   draw    = word query % 32 / 8, its byte key % 32 / 8
// `query` and `key` count from the start of their own sequence. An element is kept iff draw >= threshold. Eight bits
// are too few for p, so each call takes one of two neighbouring thresholds, by another number: floor(256 p), or one
// more where word 0 of the state after five rounds is less than the fraction of 256 p times 2^32. So each element is
// dropped with probability p, to 2^-40, and the covariance of two of a call is less than 4e-6.
//
// Matrices: a call gives eight draws of 16 bits, for eight neighbouring columns.
//   counter = (column / 8, low 32 bits of row, high 32 bits of row, low 32 bits of offset)
//   draw    = word column % 8 / 2, its low half for even columns
// An element is kept iff draw >= drop_threshold(p).
#pragma once

#include <cstdint>

namespace xformers {

inline constexpr uint32_t kPhiloxMul0 = 0xD2511F53u, kPhiloxMul1 = 0xCD9E8D57u;
inline constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9u, kPhiloxWeyl1 = 0xBB67AE85u;
inline constexpr int kPhiloxRounds = 7;

struct PhiloxWords {
  uint32_t word[4];
};

// kRounds rounds, after `before` others with these keys.
template <int kRounds = kPhiloxRounds>
inline constexpr PhiloxWords philox4x32(PhiloxWords counter, uint32_t key0, uint32_t key1, int before = 0) {
  PhiloxWords c = counter;
  key0 += static_cast<uint32_t>(before) * kPhiloxWeyl0;
  key1 += static_cast<uint32_t>(before) * kPhiloxWeyl1;
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

// ---- attention ----

// The two thresholds of p, as kept_bytes() wants them.
struct DropRule {
  uint32_t addend;  // of the lower threshold; the other's is less by 1 in each byte
  uint32_t either;  // the high bit of each byte where the thresholds are <= 128, else 0
  uint32_t chance;  // of the higher threshold, times 2^32
};
inline constexpr DropRule drop_rule(double p) {
  const auto lower = static_cast<uint32_t>(p * 256);
  const double chance = (p * 256 - lower) * 4294967296.0 + 0.5;
  return {((lower < 128 ? 128 : 256) - lower) * 0x01010101u, lower < 128 ? 0x80808080u : 0u,
          chance < 4294967295.0 ? static_cast<uint32_t>(chance) : 0xffffffffu};
}

// Compares the four bytes of a word with a threshold at once: the high bit of each says whether it is at least that;
// the others say nothing. Seven bits + addend reach the eighth where they are enough: then the draw's own high bit or
// theirs decides if the threshold is <= 128, else both do.
inline constexpr uint32_t kept_bytes(uint32_t draws, uint32_t addend, uint32_t either) {
  const uint32_t enough = (draws & 0x7f7f7f7fu) + addend;
  return (draws & enough) | (either & (draws | enough));
}

// What is kept of sixteen elements: in word w, the high bit of byte b is that of query 8 w and key 8 b after the first.
struct KeptWords {
  uint32_t word[4];
};
// Of queries block_q * 32 + class_q + {0, 8, 16, 24} and keys block_k * 32 + class_k + {0, 8, 16, 24}.
inline constexpr KeptWords attention_kept(const PhiloxKey& key, const DropRule& rule, uint32_t sequence_head,
                                          uint32_t block_q, uint32_t class_q, uint32_t block_k, uint32_t class_k) {
  constexpr int kBefore = 5;
  const PhiloxWords state = philox4x32<kBefore>(
      {{block_k * 8 + class_k, block_q * 8 + class_q, sequence_head, key.offset}}, key.key0, key.key1);
  const PhiloxWords draws = philox4x32<kPhiloxRounds - kBefore>(state, key.key0, key.key1, kBefore);
  const uint32_t addend = state.word[0] < rule.chance ? rule.addend - 0x01010101u : rule.addend;
  return {{kept_bytes(draws.word[0], addend, rule.either), kept_bytes(draws.word[1], addend, rule.either),
           kept_bytes(draws.word[2], addend, rule.either), kept_bytes(draws.word[3], addend, rule.either)}};
}
inline constexpr bool attention_keeps(const PhiloxKey& philox, const DropRule& rule, uint64_t sequence_head,
                                      uint64_t query, uint64_t key) {
  const KeptWords kept =
      attention_kept(philox, rule, static_cast<uint32_t>(sequence_head), static_cast<uint32_t>(query / 32),
                     static_cast<uint32_t>(query % 8), static_cast<uint32_t>(key / 32), static_cast<uint32_t>(key % 8));
  return (kept.word[query % 32 / 8] >> (key % 32 / 8 * 8 + 7)) & 1;
}

// ---- matrices ----

// Draws below this are dropped: p * 2^16, rounded; something is kept unless p is 1.
inline constexpr uint32_t drop_threshold(double p) {
  const uint32_t threshold = static_cast<uint32_t>(p * 65536.0 + 0.5);
  return p < 1 && threshold > 65535 ? 65535 : threshold;
}

// Draw `half` (0: low, 1: high) of a word.
inline constexpr uint32_t half_word(uint32_t word, int half) { return half ? word >> 16 : word & 0xffffu; }

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
