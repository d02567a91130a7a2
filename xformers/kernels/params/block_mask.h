// Which blocks are visible, as kernels walk them: the key blocks of one query block, in squares of 16 keys. Plain
// integer arithmetic for every device.
#pragma once

#include "xformers/kernels/params/sequence.h"

namespace xformers {

inline constexpr int kSquare = 16;  // keys: blocks are whole numbers of these
inline constexpr uint32_t kWholeSquare = 0xffff;

// Bits [first, last) of a set of squares.
XFORMERS_INLINE uint32_t bits_between(int64_t first, int64_t last) {
  return static_cast<uint32_t>((uint64_t{1} << last) - (uint64_t{1} << first));
}

// The visible key blocks of one query block, met in ascending order.
class BlockRow {
 public:
  BlockRow() = default;
  // That of a query; keys before `key` are not asked for.
  XFORMERS_INLINE BlockRow(const BlockMask& mask, int64_t batch, int64_t group, int64_t head, int64_t query,
                           int64_t key) {
    const int64_t layout = batch * mask.batch_stride + group * mask.group_stride + head * mask.head_stride;
    const int32_t* const offsets = mask.key_offsets + layout * (mask.num_q_blocks + 1) + query / mask.block_q;
    begin_ = offsets[0], end_ = offsets[1];
    // The first entry that does not lie before the key's block.
    const int64_t block = key / mask.block_k;
    int32_t low = begin_, high = end_;
    while (low < high) {
      const int32_t middle = low + (high - low) / 2;
      if (mask.key_blocks[middle] < block) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    next_ = low;
  }

  // What is left of a row, for who keeps it elsewhere between its steps.
  struct Rest {
    int32_t next, end;
  };
  XFORMERS_INLINE explicit BlockRow(const Rest& rest) : begin_(rest.next), end_(rest.end), next_(rest.next) {}
  XFORMERS_INLINE Rest rest() const { return {next_, end_}; }

  // Of the same queries' block.
  XFORMERS_INLINE bool same(const BlockRow& other) const { return begin_ == other.begin_ && end_ == other.end_; }

  // The first key from `key` on in a visible block; `none` if there is none. Keys before it are not asked for again.
  XFORMERS_INLINE int64_t next_key(const BlockMask& mask, int64_t key, int64_t none) {
    while (next_ < end_ && (mask.key_blocks[next_] + 1) * mask.block_k <= key) ++next_;
    if (next_ == end_) return none;
    const int64_t first = mask.key_blocks[next_] * mask.block_k;
    return first > key ? first : key;
  }

  // Squares [key, key + 16), ... of `count` that have a visible key, the lowest bit first; and those of them whose
  // elements have bits. key: a multiple of 16 that never falls.
  struct Squares {
    uint32_t seen, partial;
  };
  XFORMERS_INLINE Squares squares(const BlockMask& mask, int64_t key, int count) {
    Squares found{0, 0};
    const int64_t end = key + count * kSquare;
    if (next_key(mask, key, end) >= end) return found;
    for (int32_t entry = next_; entry < end_; ++entry) {
      const int64_t first = mask.key_blocks[entry] * mask.block_k;
      if (first >= end) break;
      const uint32_t here = bits_between(clamp_to(first - key, 0, count * kSquare) / kSquare,
                                         clamp_to(first + mask.block_k - key, 0, count * kSquare) / kSquare);
      found.seen |= here;
      if (has_bits(mask, entry)) found.partial |= here;
    }
    return found;
  }

  // The place of the key's block in the list, or -1. Not before what has been asked for.
  XFORMERS_INLINE int32_t entry_of(const BlockMask& mask, int64_t key) const {
    const int64_t block = key / mask.block_k;
    int32_t entry = next_;
    while (entry < end_ && mask.key_blocks[entry] < block) ++entry;
    return entry < end_ && mask.key_blocks[entry] == block ? entry : -1;
  }

  // Which of the 16 keys from `key` on a query sees, the lowest bit first. entry: of entry_of().
  static XFORMERS_INLINE uint32_t visible_keys(const BlockMask& mask, int32_t entry, int64_t query, int64_t key) {
    if (entry < 0) return 0;
    if (!has_bits(mask, entry)) return kWholeSquare;
    const int64_t row = mask.bits_of[entry] * mask.block_q + query % mask.block_q;
    return mask.bits[row * (mask.block_k / kSquare) + key % mask.block_k / kSquare];
  }

 private:
  static XFORMERS_INLINE bool has_bits(const BlockMask& mask, int32_t entry) {
    return mask.bits_of && mask.bits_of[entry] >= 0;
  }

  int32_t begin_ = 0, end_ = 0;  // in key_blocks
  int32_t next_ = 0;             // blocks before it are behind us
};

// Queries next to each other that lie in one block whatever their place: 64, or what divides block_q too.
XFORMERS_INLINE int64_t queries_in_one_block(const BlockMask& mask) {
  if (!mask.present()) return 64;
  return mask.block_q % 64 == 0 ? 64 : mask.block_q % 32 == 0 ? 32 : 16;
}

}  // namespace xformers
