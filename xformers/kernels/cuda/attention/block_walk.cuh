// The walk over what a block mask leaves of a range of steps (key_walk.cuh): those in which some row of a tile sees
// something, and of these which squares of 16 x 16. Forward: lines of 16 queries, steps of keys. Backward: lines of 16
// keys, steps of queries, by the transposed lists.
//
// One warp finds the step after the next one while all work on this one, so that nobody waits for a list. All of it
// lies in shared memory: the accumulators fill the registers.
#pragma once

#include <cstdint>

#include "xformers/kernels/cuda/attention/fragment.cuh"
#include "xformers/kernels/cuda/attention/mask.cuh"
#include "xformers/kernels/params/block_mask.h"

namespace xformers::cuda {

// Squares of a step, the lowest bit first.
__device__ constexpr __forceinline__ uint32_t all_squares(int count) { return (1u << count) - 1; }

// Whether lines are of queries, or of keys.
enum class LinesOf { kQueries, kKeys };

// kLines: of a tile, at most. kAcross: squares of a step. kKept: steps that are known at a time; where there are four,
// the one before, this one, the next, and the one after it. Never constructed, since it lies in shared memory.
template <LinesOf kLinesOf, int kLines, int kAcross, int kKept = 4>
struct BlockWalk {
  static constexpr int kSize = kAcross * kSquare;  // rows of a step
  static_assert(kLines <= 32 && kAcross <= 16);

  struct Step {
    int index;                        // in units of kSize; the end of the range: there is none
    uint16_t seen[kLines];            // squares of each line, the lowest bit first
    uint16_t partial[kLines];         // of these, which have bits of their own
    uint32_t words[kLines][kAcross];  // then: where the bits of the square's first query are
  };

  int batch, group, head;       // of the layout
  int first_line, lines;        // in squares from the sequence's first row on
  int next, end;                // steps that are not asked for yet
  BlockRow::Rest rest[kLines];  // of the lines' lists
  Step steps[kKept];

  // Of tile rows [first, last) and steps [range.begin, range.end); finds the first two. By one warp, and before a
  // barrier.
  __device__ __forceinline__ void begin(const BlockMask& mask, int of_batch, int of_group, int of_head, int first,
                                        int last, Range range) {
    start(mask, of_batch, of_group, of_head, first, last, range);
    find(mask, 0);
    find(mask, 1);
  }
  // The same without any step.
  __device__ __forceinline__ void start(const BlockMask& mask, int of_batch, int of_group, int of_head, int first,
                                        int last, Range range) {
    const int lane = threadIdx.x % 32, from = first / kSquare, to = (last + kSquare - 1) / kSquare;
    if (lane == 0) {
      batch = of_batch, group = of_group, head = of_head;
      first_line = from, lines = min(to - from, kLines);
      next = range.begin, end = max(range.begin, range.end);
    }
    __syncwarp();
    if (lane < lines) rest[lane] = row_of(mask, (from + lane) * kSquare, next * kSize).rest();
    __syncwarp();
  }

  // Finds step number `turn`, counted from 0. By the warp that began, and a barrier ahead of anyone who asks for it.
  __device__ __forceinline__ void find(const BlockMask& mask, int turn) {
    const int lane = threadIdx.x % 32;
    const int64_t rows_end = int64_t{end} * kSize;
    const BlockMask lists = of_lines(mask);
    BlockRow row;
    int mine = end;
    if (lane < lines) {
      row = BlockRow(rest[lane]);
      const int64_t at = row.next_key(lists, int64_t{next} * kSize, rows_end);
      mine = static_cast<int>(at < rows_end ? at / kSize : end);
    }
    Step& step = steps[turn % kKept];
    const int index = __reduce_min_sync(kAllLanes, mine);
    if (lane < kLines) {
      uint32_t seen = 0;
      if (lane < lines) {
        if (index < end) seen = row.squares(lists, int64_t{index} * kSize, kAcross).seen;
        rest[lane] = row.rest();
      }
      step.seen[lane] = static_cast<uint16_t>(seen), step.partial[lane] = 0;
    }
    __syncwarp();
    if (lane == 0) step.index = index, next = min(index + 1, end);
    if (mask.bits_of) find_bits(mask, step, index);
    __syncwarp();
  }

  __device__ __forceinline__ const Step& at(int turn) const { return steps[turn % kKept]; }

  // Of the 16 keys of a square of a step, those that a query of its 16 sees, the lowest bit first.
  __device__ __forceinline__ uint32_t keys_of(const BlockMask& mask, int turn, int line, int square, int query) const {
    const Step& step = at(turn);
    if (!(step.seen[line] >> square & 1)) return 0;
    if (!(step.partial[line] >> square & 1)) return kWholeSquare;
    return mask
        .bits[step.words[line][square] + static_cast<uint32_t>(query) * static_cast<uint32_t>(mask.block_k / kSquare)];
  }
  // Of the 16 queries of a square of a step, those that see key `row` of the tile, as far as a fragment's lane has them
  // as columns, the lowest bit first.
  __device__ __forceinline__ uint32_t queries_of_lane(const BlockMask& mask, int turn, int row, int square) const {
    const int line = row / kSquare;
    if (!(at(turn).partial[line] >> square & 1)) return at(turn).seen[line] >> square & 1 ? kWholeSquare : 0;
    uint32_t shown = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int query = lane_column(0) + i / 2 * 8 + i % 2;
      shown |= (keys_of(mask, turn, line, square, query) >> row % kSquare & 1) << query;
    }
    return shown;
  }

 private:
  static constexpr bool kTransposed = kLinesOf == LinesOf::kKeys;

  // The lists of the lines: a row of these is a column of the others. (Bits are counted along the first alone.)
  static __device__ __forceinline__ BlockMask of_lines(const BlockMask& mask) {
    BlockMask lists = mask;
    lists.bits_of = nullptr;
    if constexpr (kTransposed) {
      lists.key_offsets = mask.query_offsets, lists.key_blocks = mask.query_blocks;
      lists.block_q = mask.block_k, lists.block_k = mask.block_q, lists.num_q_blocks = mask.num_k_blocks;
    }
    return lists;
  }
  __device__ __forceinline__ BlockRow row_of(const BlockMask& mask, int row, int from) const {
    return BlockRow(of_lines(mask), batch, group, head, row, from);
  }

  __device__ __forceinline__ void find_bits(const BlockMask& mask, Step& step, int index) const {
    const int lane = threadIdx.x % 32;
    for (int square = lane; square < lines * kAcross; square += 32) {
      const int line = square / kAcross, across = square % kAcross;
      uint32_t word = kWhole;
      if (step.seen[line] >> across & 1) {
        const int along = (first_line + line) * kSquare, other = index * kSize + across * kSquare;
        const int query = kTransposed ? other : along, key = kTransposed ? along : other;
        word = word_of(mask, query, key);
      }
      step.words[line][across] = word;
    }
    __syncwarp();
    if (lane >= lines) return;
    uint32_t partial = 0;
    for (int across = 0; across < kAcross; ++across) partial |= (step.words[lane][across] != kWhole) << across;
    step.partial[lane] = static_cast<uint16_t>(partial);
  }
  // Of a square that is seen: where the bits of its first query are, or kWhole.
  __device__ __forceinline__ uint32_t word_of(const BlockMask& mask, int query, int key) const {
    const int32_t entry = BlockRow(mask, batch, group, head, query, key).entry_of(mask, key);
    const int32_t number = entry < 0 ? -1 : mask.bits_of[entry];
    if (number < 0) return kWhole;
    const int64_t row = number * mask.block_q + query % mask.block_q;
    return static_cast<uint32_t>(row * (mask.block_k / kSquare) + key % mask.block_k / kSquare);
  }

  static constexpr uint32_t kWhole = 0xffffffff;
};

// Every square: what products and masks ask where there is no block mask.
struct EverySquare {
  __device__ __forceinline__ constexpr bool operator()(int) const { return true; }
  __device__ __forceinline__ constexpr bool none() const { return false; }
};

}  // namespace xformers::cuda
