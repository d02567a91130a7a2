// The walk over visible keys, beside that of band.h: which runs of a tile of keys the columns of a block see, where a
// block mask hides the rest, and their mask. Without a block mask there is one run, what the band leaves.
#pragma once

#include "xformers/kernels/cpu/attention/columns-inl.h"
#include "xformers/kernels/params/block_mask.h"

HWY_BEFORE_NAMESPACE();
namespace xformers::cpu::XFORMERS_ISA_NAMESPACE {

// Keys next to each other that some column of the block may see.
struct KeyRun {
  ptrdiff_t begin, rows;  // from the tile's first key on
  bool whole;             // every column sees all of them, as far as blocks say
};

// Those of a tile. Scores are held run behind run.
struct KeyRuns {
  KeyRun list[kBlockKeys / kSquare];
  int count = 0;
  HWY_INLINE const KeyRun* begin() const { return list; }
  HWY_INLINE const KeyRun* end() const { return list + count; }
};

// Which rows of the block mask the columns of a block are.
class ColumnRows {
 public:
  // Keys before `key` are not asked for.
  template <class C>
  HWY_INLINE void start(const BlockMask& mask, const Columns<C>& columns, int64_t batch, int64_t group, int64_t key) {
    num_parts_ = 0;
    if (!mask.present()) return;
    for (ptrdiff_t c = 0; c < columns.count; ++c) {
      const int64_t query = columns.origin + columns.query[c];
      if (num_parts_ > 0 && c > 0 && columns.head[c] == columns.head[c - 1] && query % mask.block_q != 0) {
        parts_[num_parts_ - 1].end = c + 1;
        continue;
      }
      const BlockRow row(mask, batch, group, columns.head[c], query, key);
      if (num_parts_ > 0 && parts_[num_parts_ - 1].row.same(row)) {
        parts_[num_parts_ - 1].end = c + 1;
      } else {
        parts_[num_parts_++] = {row, c, c + 1};
      }
    }
  }

  // The runs of keys [key + begin, key + end), key a multiple of 16. align: 16 or 32, of which runs are multiples but
  // for the end of the last one.
  HWY_INLINE KeyRuns runs(const BlockMask& mask, int64_t key, ptrdiff_t begin, ptrdiff_t end, ptrdiff_t align) {
    KeyRuns found;
    if (begin >= end) return found;
    if (!mask.present()) {
      found.list[found.count++] = {begin, end - begin, true};
      return found;
    }
    constexpr int kSquares = kBlockKeys / kSquare;
    uint32_t some = 0, all = bits_between(0, kSquares);
    for (ptrdiff_t i = 0; i < num_parts_; ++i) {
      const BlockRow::Squares squares = parts_[i].row.squares(mask, key, kSquares);
      some |= squares.seen;
      all &= squares.seen & ~squares.partial;
    }
    some &= bits_between(begin / kSquare, (end + kSquare - 1) / kSquare);
    if (align > kSquare) some = ((some | some >> 1) & 0x5555) * 3;
    for (int square = begin / kSquare; some >> square;) {
      if (!(some >> square & 1)) {
        ++square;
        continue;
      }
      const int first = square;
      while (some >> square & 1) ++square;
      const ptrdiff_t run_end = min_of(square * kSquare, end);
      const uint32_t inside = bits_between(first, square);
      found.list[found.count++] = {first * kSquare, run_end - first * kSquare, (all & inside) == inside};
    }
    return found;
  }

  // -inf where a column does not see one of the keys [key, key + rows), key a multiple of 16 of the tile that runs()
  // was last asked for.
  template <class C>
  HWY_NOINLINE void hide(const BlockMask& mask, const Columns<C>& columns, C* scores, int64_t key,
                         ptrdiff_t rows) const {
    const Tag<C> d;
    const hn::RebindToUnsigned<Tag<C>> bits;
    using Word = hn::TFromD<decltype(bits)>;
    alignas(64) Word words[kBlockColumns];
    const auto masked = hn::Set(d, -kInfinity<C>);
    for (ptrdiff_t c = columns.count; c < columns.padded; ++c) words[c] = kWholeSquare;
    for (ptrdiff_t first = 0; first < rows; first += kSquare) {
      for (ptrdiff_t i = 0; i < num_parts_; ++i) {
        const int32_t entry = parts_[i].row.entry_of(mask, key + first);
        for (ptrdiff_t c = parts_[i].begin; c < parts_[i].end; ++c) {
          words[c] = BlockRow::visible_keys(mask, entry, columns.origin + columns.query[c], key + first);
        }
      }
      for (ptrdiff_t n = first; n < min_of(first + kSquare, rows); ++n) {
        const auto bit = hn::Set(bits, static_cast<Word>(Word{1} << (n - first)));
        for (ptrdiff_t c = 0; c < columns.padded; c += lanes<C>()) {
          C* const at = scores + n * columns.padded + c;
          const auto visible = hn::RebindMask(d, hn::TestBit(hn::Load(bits, words + c), bit));
          hn::StoreU(hn::IfThenElse(visible, hn::LoadU(d, at), masked), d, at);
        }
      }
    }
  }

 private:
  struct Part {  // columns [begin, end) have one row
    BlockRow row;
    ptrdiff_t begin, end;
  };
  Part parts_[kBlockColumns];
  ptrdiff_t num_parts_;
};

}  // namespace xformers::cpu::XFORMERS_ISA_NAMESPACE
HWY_AFTER_NAMESPACE();
