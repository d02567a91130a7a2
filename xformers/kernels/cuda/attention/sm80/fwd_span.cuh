// Row tiles that go on where a packed sequence ends, so that many short ones fill a few tiles: which keys each row sees
// is found out once, by a thread each, and read from shared memory where scores are masked.
//
// Keys count over all sequences, which lie one behind the other (a tile's sequence is the whole batch row). A NaN or
// an infinite value reaches all rows of a tile, 0 * NaN, but must not leave its sequence: where the results have a NaN,
// the tile's sequences are taken again, one by one.
#pragma once

#include "xformers/kernels/cuda/attention/sm80/fwd_tile.cuh"

namespace xformers::cuda::sm80 {

// In shared memory.
template <FwdPolicy kPolicy>
struct FwdSpan {
  struct alignas(16) WarpKeys {
    Range any, full;  // keys that any of the warp's rows sees; that all do
  };
  int64_t first_sequence, last_sequence;  // that may have rows here
  int first_row, rows;                    // all rows of the tile, counted over all sequences
  bool several, one_by_one;               // sequences at a time; again
  WarpKeys warps[kPolicy.warps];
  Range visible[kPolicy.block_m()];  // keys that each row sees
};

// What a warp's rows see (SequenceSight, fwd_tile.cuh).
template <FwdPolicy kPolicy>
struct SpanSight {
  FwdSpan<kPolicy>& span;

  // Results with a NaN are not the last word on several sequences.
  __device__ __forceinline__ void check(bool has_nan) const {
    if (span.several && __syncthreads_or(has_nan) && threadIdx.x == 0) span.one_by_one = true;
  }
  __device__ __forceinline__ bool sees(const WarpPart<kPolicy>& warp, int block) const {
    const Range any = span.warps[warp.warp].any;
    return block * kPolicy.block_n < any.end && (block + 1) * kPolicy.block_n > any.begin;
  }
  __device__ __forceinline__ Range full(const WarpPart<kPolicy>& warp) const { return span.warps[warp.warp].full; }
  __device__ __forceinline__ Range visible(const WarpPart<kPolicy>& warp, int row) const {
    return span.visible[warp.row + row];
  }
};

// The tile's rows that are of one sequence.
template <FwdPolicy kPolicy>
__device__ __forceinline__ void take_sequence(FwdTile& tile, const FwdGrid& args, const FwdSpan<kPolicy>& span,
                                              int64_t index) {
  const int64_t packed_heads = args.packed_heads.size();
  tile.sequence = sequence_at(args.p.shape, args.p.seq, index);
  const int64_t begin = tile.sequence.q_begin * packed_heads;
  const int64_t first = max(span.first_row - begin, int64_t{0});
  tile.first = static_cast<int>(first);
  tile.rows = static_cast<int>(min(span.first_row + span.rows - begin, tile.sequence.seqlen_q * packed_heads) - first);
}

// The thread block's tile, and its span. By one warp; the caller synchronises.
template <FwdPolicy kPolicy>
__device__ __forceinline__ void find_span(FwdTile& tile, FwdSpan<kPolicy>& span, const FwdGrid& args) {
  const AttentionShape& shape = args.p.shape;
  FwdTile found;
  const int index = take_place(found, args).row_tile;
  const int64_t all = shape.seqlen_q * args.packed_heads.size();
  const TileRows tile_rows = rows_of(args, found);
  const int first = index * kPolicy.block_m(), rows = static_cast<int>(min(all - first, int64_t{kPolicy.block_m()}));
  const int64_t first_sequence = sequence_of_query(args.p.seq, tile_rows.query_of(first));
  const int64_t last_sequence = sequence_of_query(args.p.seq, tile_rows.query_of(first + rows - 1), first_sequence);
  if (threadIdx.x != 0) return;
  span.first_sequence = first_sequence, span.last_sequence = last_sequence;
  span.first_row = first, span.rows = rows;
  take_sequence<kPolicy>(found, args, span, first_sequence);
  span.several = found.rows < rows, span.one_by_one = false;
  if (span.several) {
    found.sequence = {0, 0, 0, 0, static_cast<int>(shape.seqlen_q), static_cast<int>(shape.seqlen_k)};
    found.first = first, found.rows = rows;
  }
  if (found.rows > 0) complete<kPolicy>(found, args);
  tile = found;
}

// The next sequence of a tile whose sequences are taken one by one; false: there is none. All threads.
template <FwdPolicy kPolicy>
__device__ __forceinline__ bool next_sequence(FwdTile& tile, FwdSpan<kPolicy>& span, const FwdGrid& args) {
  __syncthreads();  // everybody is done with the tile
  if (!span.one_by_one) return false;
  copy_async_wait<0>();  // the zeros behind the last K, where the next one's is to come
  const int64_t next = span.several ? span.first_sequence : tile.sequence.index + 1;
  __syncthreads();
  if (next > span.last_sequence) return false;
  if (threadIdx.x == 0) {
    span.several = false;
    take_sequence<kPolicy>(tile, args, span, next);
    if (tile.rows > 0) complete<kPolicy>(tile, args);
  }
  __syncthreads();
  return true;
}

// Keys that a query of the span sees, counted over all sequences.
template <FwdPolicy kPolicy>
__device__ __forceinline__ Range keys_of_query(const FwdGrid& args, const FwdSpan<kPolicy>& span, int query) {
  int64_t low = span.first_sequence, high = span.last_sequence;  // the last that begins at or before it
  while (low < high) {
    const int64_t middle = (low + high + 1) / 2;
    args.p.seq.cu_seqlens_q[middle] <= query ? low = middle : high = middle - 1;
  }
  const Sequence sequence = sequence_at(args.p.shape, args.p.seq, low);
  const int at = query - static_cast<int>(sequence.q_begin), first = static_cast<int>(sequence.k_begin);
  if (at < 0 || at >= sequence.seqlen_q) return {0, 0};
  const Range keys = Band(args.p.band, sequence).key_range({at, at + 1});
  return keys.empty() ? Range{0, 0} : Range{first + keys.begin, first + keys.end};
}

// Fills in which keys each row sees, and each warp's, and the tile's blocks of keys. All threads; synchronises.
template <FwdPolicy kPolicy>
__device__ __forceinline__ void find_visible_keys(FwdTile& tile, FwdSpan<kPolicy>& span, const FwdGrid& args) {
  constexpr int kRows = kPolicy.warp_rows(), kNoKey = 0x7fffffff;
  static_assert(kRows == 32 && kPolicy.threads() == kPolicy.block_m());
  if (span.several && threadIdx.x == 0) tile.blocks = {kNoKey, 0};
  __syncthreads();
  const int row = threadIdx.x;
  const bool nobody = row / kRows * kRows >= tile.rows;
  // Rows behind the last see what it does.
  const int query = rows_of(args, tile).query_of(tile.first + min(row, tile.rows - 1));
  Range keys = {0, 0};
  if (!nobody) keys = span.several ? keys_of_query<kPolicy>(args, span, query) : visible_keys(tile.band, query);
  span.visible[row] = keys;
  const bool none = keys.empty();
  const Range any{__reduce_min_sync(kAllLanes, none ? kNoKey : keys.begin),
                  __reduce_max_sync(kAllLanes, none ? 0 : keys.end)};
  const Range full{__reduce_max_sync(kAllLanes, keys.begin), __reduce_min_sync(kAllLanes, keys.end)};
  if (row % kRows == 0) {
    span.warps[row / kRows] = {any, full};
    if (span.several && !any.empty()) {
      atomicMin(&tile.blocks.begin, any.begin / kPolicy.block_n);
      atomicMax(&tile.blocks.end, ceil_div(any.end, kPolicy.block_n));
    }
  }
  __syncthreads();
}

}  // namespace xformers::cuda::sm80
