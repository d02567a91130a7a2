// Keys of the tile decode in blocks of up to four tiles of 16: where the rows of a tile lie, their copy where they
// can't be read in place, and what to ask for ahead.
#pragma once

#include "xformers/kernels/cpu/attention/key_rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xformers::cpu::XFORMERS_ISA_NAMESPACE {

inline constexpr ptrdiff_t kTileKeys = 16, kTileDims = 32, kMaxTiles = 4;

// 16 keys or less. row: where the first one lies if all of them lie next to each other, else -1.
struct KeyTile {
  Range keys;
  int64_t row;
  bool in_place;  // else they are copied
  HWY_INLINE ptrdiff_t count() const { return keys.end - keys.begin; }
};
struct KeyBlock {
  Range keys;
  ptrdiff_t num_tiles;
  KeyTile tiles[kMaxTiles];
};

// Rows of one stream to ask for, for the first-level cache, while another one is computed.
struct RowsAhead {
  const char* first = nullptr;  // null: nothing
  ptrdiff_t stride = 0, bytes = 0;

  // Part `part` of `parts` of the 16 rows.
  HWY_INLINE void fetch(ptrdiff_t part, ptrdiff_t parts) const {
    if (!first) return;
    const char* const end = first + kTileKeys * (part + 1) / parts * stride;
    for (const char* row = first + kTileKeys * part / parts * stride; row < end; row += stride) {
      for (ptrdiff_t at = 0; at < bytes; at += 64) __builtin_prefetch(row + at, 0, 3);
    }
  }
};

class KeyTiles {
  using T = BFloat16;

 public:
  HWY_INLINE KeyTiles(const AttentionFwdParams& params, ptrdiff_t num_streams)
      : p_(params),
        key_rows_(params),
        dim_(round_up(params.shape.head_dim, kTileDims)),
        dim_v_(round_up(params.shape.head_dim_v, kTileDims)) {
    constexpr ptrdiff_t kBlockBytes = 160 << 10;  // of K, and as many of V: they stay in the second-level cache
    const ptrdiff_t per_tile = kTileKeys * max_of(num_streams, 1) * max_of(dim_, dim_v_) * sizeof(T);
    max_tiles_ = clamp_to(kBlockBytes / per_tile, 1, kMaxTiles);
  }

  // Head dims rounded up to whole tiles.
  HWY_INLINE ptrdiff_t dim() const { return dim_; }
  HWY_INLINE ptrdiff_t dim_v() const { return dim_v_; }

  // The next block from `key` on; none left: no tiles.
  HWY_INLINE KeyBlock locate(const Sequence& sequence, int64_t key, int64_t end) const {
    KeyBlock block{{key, key}, 0, {}};
    const bool plain =
        p_.quantization.format == KvFormat::kPlain && p_.shape.head_dim == dim_ && p_.shape.head_dim_v == dim_v_;
    for (; block.num_tiles < max_tiles_ && block.keys.end < end; ++block.num_tiles) {
      const Range keys{block.keys.end, min_of(block.keys.end + kTileKeys, end)};
      const RowRun run = rows_from(p_.shape, p_.seq, sequence, keys.begin, keys.end);
      const bool together = run.count == keys.end - keys.begin;
      block.tiles[block.num_tiles] = {keys, together ? run.row : -1, plain && together && run.count == kTileKeys};
      block.keys.end = keys.end;
    }
    return block;
  }

  // A tile of K or V at its place, or in `copy`, its missing keys and dims as zeros.
  template <bool kValues>
  HWY_INLINE Rows<T> rows(const KeyTile& tile, const Sequence& sequence, int64_t group, int64_t head, T* copy) const {
    const HeadsTensor& tensor = kValues ? p_.v : p_.k;
    if (tile.in_place) return {row_of<T>(tensor, sequence.batch, tile.row, group, head), tensor.seq_stride};
    const ptrdiff_t dim = kValues ? p_.shape.head_dim_v : p_.shape.head_dim, padded = kValues ? dim_v_ : dim_;
    if (dim < padded || tile.count() < kTileKeys)
      std::memset(static_cast<void*>(copy), 0, kTileKeys * padded * sizeof(T));
    const Rows<T> rows = kValues ? key_rows_.values(sequence, tile.keys, group, head, {copy, padded})
                                 : key_rows_.keys(sequence, tile.keys, group, head, {copy, padded});
    if (rows.data == copy) return rows;
    for (ptrdiff_t n = 0; n < tile.count(); ++n)
      std::memcpy(copy + n * padded, rows.data + n * rows.stride, dim * sizeof(T));
    return {copy, padded};
  }

  // The rows of a tile as they lie in memory, whatever their format.
  template <bool kValues>
  HWY_INLINE RowsAhead ahead(const KeyTile& tile, const Sequence& sequence, int64_t group, int64_t head) const {
    if (tile.row < 0 || tile.count() < kTileKeys) return {};
    const HeadsTensor& tensor = kValues ? p_.v : p_.k;
    const ptrdiff_t dim = kValues ? p_.shape.head_dim_v : p_.shape.head_dim;
    constexpr ptrdiff_t kElement = sizeof(T), kWord = sizeof(uint32_t);
    const void* const element = row_of<const T>(tensor, sequence.batch, tile.row, group, head);
    const void* const word = row_of<const uint32_t>(tensor, sequence.batch, tile.row, group, head);
    switch (p_.quantization.format) {
      case KvFormat::kPlain: return {static_cast<const char*>(element), tensor.seq_stride * kElement, dim * kElement};
      case KvFormat::kInt4:
        return {static_cast<const char*>(word), tensor.seq_stride * kWord,
                p_.quantization.num_groups * kWord + dim / 2};
      case KvFormat::kFp8: return {static_cast<const char*>(word), tensor.seq_stride * kWord, dim};
    }
    return {};
  }

 private:
  const AttentionFwdParams& p_;
  KeyRows<T> key_rows_;
  ptrdiff_t dim_, dim_v_, max_tiles_;
};

}  // namespace xformers::cpu::XFORMERS_ISA_NAMESPACE
HWY_AFTER_NAMESPACE();
