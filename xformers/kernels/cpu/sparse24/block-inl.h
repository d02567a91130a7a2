// Blocks of 64 x 64 values: packing them under the masks of their tiles, transposing both.
#pragma once

#include "xformers/kernels/cpu/sparse24/tile_choice-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xformers::cpu::XFORMERS_ISA_NAMESPACE {

// The bits of an element of `kBytes`.
template <int kBytes>
struct BitsOf;
template <>
struct BitsOf<2> {
  using type = uint16_t;
  using Element = BFloat16;
};
template <>
struct BitsOf<4> {
  using type = uint32_t;
  using Element = float;
};
template <>
struct BitsOf<8> {
  using type = uint64_t;
  using Element = double;
};

using TileMasks = uint16_t[kTiles * kTiles];  // [row of tiles][tile]: bit 4 * row + column
using TileRows = uint64_t[kTiles * 4];        // [row of tiles][16 columns][row]: 16 bits

using WordTag = hn::ScalableTag<uint64_t>;
template <int kShift>
HWY_INLINE hn::Vec<WordTag> swap_parts(hn::Vec<WordTag> x, uint64_t stay, uint64_t move) {
  const WordTag d;
  const auto part = hn::Set(d, move);
  return hn::Or(hn::And(x, hn::Set(d, stay)),
                hn::Or(hn::ShiftLeft<kShift>(hn::And(x, part)), hn::And(hn::ShiftRight<kShift>(x), part)));
}

// Four masks side by side, [tile][row][column], become the 16 bits of each row: 4 x 4 nibbles of 64 bits change places.
HWY_INLINE void rows_of_tiles(const TileMasks& tiles, TileRows& to) {
  const WordTag d;
  for (size_t i = 0; i < kTiles * 4; i += hn::MaxLanes(d)) {
    auto x = hn::LoadU(d, reinterpret_cast<const uint64_t*>(tiles) + i);
    x = swap_parts<12>(x, 0xf0f00f0ff0f00f0full, 0x0000f0f00000f0f0ull);
    x = swap_parts<24>(x, 0xff00ff0000ff00ffull, 0x00000000ff00ff00ull);
    hn::StoreU(x, d, to + i);
  }
}

// Columns of the two slots by what is kept of four (more than two: the outer ones).
HWY_INLINE void indices_of_masks(const TileMasks& masks, TileMasks& indices) {
  alignas(16) static constexpr uint8_t kIndices[16] = {4, 4, 9, 4, 8, 8, 9, 8, 12, 12, 13, 12, 14, 12, 13, 12};
  const hn::ScalableTag<uint8_t> d;
  const auto table = hn::LoadDup128(d, kIndices), low = hn::Set(d, uint8_t{15});
  const auto* from = reinterpret_cast<const uint8_t*>(masks);
  auto* to = reinterpret_cast<uint8_t*>(indices);
  for (size_t i = 0; i < sizeof masks; i += hn::MaxLanes(d)) {
    const auto two = hn::LoadU(d, from + i);
    const auto first = hn::TableLookupBytes(table, hn::And(two, low));
    const auto second = hn::TableLookupBytes(table, hn::And(hn::ShiftRight<4>(two), low));
    hn::StoreU(hn::Or(first, hn::ShiftLeft<4>(second)), d, to + i);
  }
}

using EightTag = hn::FixedTag<uint16_t, 8>;
// 8 x 8 elements of every 128 bits: neighbours, pairs, fours.
template <class D>
HWY_INLINE void transpose_eights(D d, hn::Vec<D> (&a)[8]) {
  hn::Vec<D> b[8];
  const auto step = [&](const hn::Vec<D>(&from)[8], hn::Vec<D>(&to)[8]) HWY_ATTR {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      to[2 * i] = hn::InterleaveLower(d, from[i], from[i + 4]);
      to[2 * i + 1] = hn::InterleaveUpper(d, from[i], from[i + 4]);
    }
  };
  step(a, b);
  step(b, a);
  step(a, b);
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) a[i] = b[i];
}

HWY_NOINLINE void transpose_masks(const TileMasks& masks, TileMasks& to) {
  const EightTag d;
  const auto swap = [&](hn::Vec<EightTag> m, uint16_t stay, uint16_t move, auto shift) HWY_ATTR {
    constexpr int kShift = decltype(shift)::value;
    const auto part = hn::Set(d, move);
    return hn::Or(hn::And(m, hn::Set(d, stay)),
                  hn::Or(hn::ShiftLeft<kShift>(hn::And(m, part)), hn::And(hn::ShiftRight<kShift>(m), part)));
  };
  for (ptrdiff_t i = 0; i < kTiles; i += 8) {
    for (ptrdiff_t t = 0; t < kTiles; t += 8) {
      hn::Vec<EightTag> a[8];
      for (int r = 0; r < 8; ++r) {  // the bits of a 4 x 4 matrix: 1 with 4, then its quarters
        a[r] = hn::LoadU(d, masks + (i + r) * kTiles + t);
        a[r] = swap(a[r], 0xa5a5, 0x0a0a, std::integral_constant<int, 3>());
        a[r] = swap(a[r], 0xcc33, 0x00cc, std::integral_constant<int, 6>());
      }
      transpose_eights(d, a);
      for (int r = 0; r < 8; ++r) hn::StoreU(a[r], d, to + (t + r) * kTiles + i);
    }
  }
}

// to[c][r] = x[r][c], both with rows of kSide where not told.
template <class Bits>
HWY_INLINE void transpose_block(const Bits* HWY_RESTRICT x, ptrdiff_t stride, Bits* HWY_RESTRICT to) {
  for (ptrdiff_t r0 = 0; r0 < kSide; r0 += 8) {
    for (ptrdiff_t c = 0; c < kSide; ++c) {
      for (ptrdiff_t r = r0; r < r0 + 8; ++r) to[c * kSide + r] = x[r * stride + c];
    }
  }
}
// The 128-bit blocks of a vector, `step` elements apart.
template <class D>
HWY_INLINE void store_blocks(D d, hn::Vec<D> v, uint16_t* to, ptrdiff_t step) {
  if constexpr (hn::MaxLanes(D()) > 8) {
    const hn::Half<D> half;
    store_blocks(half, hn::LowerHalf(half, v), to, step);
    store_blocks(half, hn::UpperHalf(half, v), to + hn::MaxLanes(half) / 8 * step, step);
  } else {
    hn::StoreU(v, d, to);
  }
}
HWY_INLINE void transpose_block(const uint16_t* HWY_RESTRICT x, ptrdiff_t stride, uint16_t* HWY_RESTRICT to) {
  const hn::ScalableTag<uint16_t> d;
  constexpr ptrdiff_t kLanes = static_cast<ptrdiff_t>(hn::MaxLanes(hn::ScalableTag<uint16_t>()));
  for (ptrdiff_t r = 0; r < kSide; r += 8) {
    for (ptrdiff_t c = 0; c < kSide; c += kLanes) {
      hn::Vec<decltype(d)> a[8];
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) a[i] = hn::LoadU(d, x + (r + i) * stride + c);
      transpose_eights(d, a);
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) store_blocks(d, a[i], to + (c + i) * kSide + r, 8 * kSide);
    }
  }
}

// Rows [0, rows) of a block: the two slots of any four columns, 32 values a row.
template <class Bits>
HWY_INLINE void pack_values(const Bits* HWY_RESTRICT x, ptrdiff_t stride, const TileMasks& masks, ptrdiff_t rows,
                            Bits* HWY_RESTRICT values, ptrdiff_t value_stride, bool /*stream*/) {
  for (ptrdiff_t r = 0; r < rows; ++r) {
    for (ptrdiff_t t = 0; t < kTiles; ++t) {
      const int kept = masks[r / 4 * kTiles + t] >> (4 * (r % 4)) & 15;
      const Bits* four = x + r * stride + 4 * t;
      values[r * value_stride + 2 * t] = kept & 1 ? four[0] : kept & 2 ? four[1] : kept == 12 ? four[2] : 0;
      values[r * value_stride + 2 * t + 1] = kept & 8 ? four[3] : kept & 4 ? four[2] : kept == 3 ? four[1] : 0;
    }
  }
}
HWY_INLINE void pack_values(const uint16_t* HWY_RESTRICT x, ptrdiff_t stride, const TileMasks& masks, ptrdiff_t rows,
                            uint16_t* HWY_RESTRICT values, ptrdiff_t value_stride, bool stream) {
  const LaneTag d;
  const hn::Rebind<uint16_t, LaneTag> d16;
  constexpr ptrdiff_t kLanes = static_cast<ptrdiff_t>(hn::MaxLanes(LaneTag()));
  const auto bit = [&](uint32_t value) HWY_ATTR { return hn::Set(d, value); };
  const auto high_half = bit(0xffff0000u);
  for (ptrdiff_t t = 0; t < kTiles; t += kLanes) {
    for (ptrdiff_t r = 0; r < rows; ++r) {
      const auto tiles = hn::PromoteTo(d, hn::LoadU(d16, masks + r / 4 * kTiles + t));
      const auto kept = hn::And(hn::ShiftRightSame(tiles, static_cast<int>(4 * (r % 4))), bit(15));
      const auto* row = reinterpret_cast<const uint32_t*>(x + r * stride + 4 * t);
      const auto first = hn::LoadU(d, row), second = hn::LoadU(d, row + kLanes);
      const auto left = hn::ConcatEven(d, second, first), right = hn::ConcatOdd(d, second, first);
      // The low halves hold columns 0 and 2, the high ones 1 and 3.
      auto low = hn::IfThenElseZero(hn::Eq(kept, bit(12)), right);
      low = hn::IfThenElse(hn::TestBit(kept, bit(2)), hn::ShiftRight<16>(left), low);
      low = hn::IfThenElse(hn::TestBit(kept, bit(1)), left, low);
      auto high = hn::IfThenElseZero(hn::Eq(kept, bit(3)), left);
      high = hn::IfThenElse(hn::TestBit(kept, bit(4)), hn::ShiftLeft<16>(right), high);
      high = hn::IfThenElse(hn::TestBit(kept, bit(8)), right, high);
      const auto both = hn::Or(hn::AndNot(high_half, low), hn::And(high_half, high));
      auto* to = reinterpret_cast<uint32_t*>(values + r * value_stride + 2 * t);
      stream ? hn::Stream(both, d, to) : hn::StoreU(both, d, to);
    }
  }
}

// Words of a block to where they lie (Sparse24Packed::meta_word); `groups` of 32 rows. Rows r and r + 8 become one
// double word, and four of these neighbours: of rows r and r + 16, and 16 columns and the next 16.
HWY_INLINE void store_words(const TileRows& words, const Sparse24Packed& to, int64_t row, int64_t word,
                            ptrdiff_t groups) {
  const EightTag d;
  const hn::FixedTag<uint32_t, 4> d32;
  const hn::FixedTag<uint64_t, 2> d64;
  const auto pairs = [&](ptrdiff_t tile_row, ptrdiff_t w) HWY_ATTR {  // of four rows
    const auto upper = hn::BitCast(d, hn::Set(d64, words[tile_row * 4 + w]));
    const auto lower = hn::BitCast(d, hn::Set(d64, words[(tile_row + 2) * 4 + w]));
    return hn::BitCast(d32, hn::InterleaveLower(d, upper, lower));
  };
  for (ptrdiff_t g = 0; g < groups; ++g) {
    for (ptrdiff_t w = 0; w < 4; w += 2) {
      auto* const out = reinterpret_cast<uint32_t*>(to.meta + to.meta_word(row + 32 * g, word + w));
      for (ptrdiff_t i = 0; i < 2; ++i) {
        const ptrdiff_t first = 8 * g + i;
        const auto a = pairs(first, w), b = pairs(first, w + 1), c = pairs(first + 4, w), e = pairs(first + 4, w + 1);
        const auto ab = hn::BitCast(d64, hn::InterleaveLower(d32, a, b)),
                   ce = hn::BitCast(d64, hn::InterleaveLower(d32, c, e));
        const auto ab_high = hn::BitCast(d64, hn::InterleaveUpper(d32, a, b));
        const auto ce_high = hn::BitCast(d64, hn::InterleaveUpper(d32, c, e));
        const auto store = [&](ptrdiff_t r, auto v)
                               HWY_ATTR { hn::StoreU(hn::BitCast(d32, v), d32, out + (4 * i + r) * 4); };
        store(0, hn::InterleaveLower(d64, ab, ce));
        store(1, hn::InterleaveUpper(d64, ab, ce));
        store(2, hn::InterleaveLower(d64, ab_high, ce_high));
        store(3, hn::InterleaveUpper(d64, ab_high, ce_high));
      }
    }
  }
}

}  // namespace xformers::cpu::XFORMERS_ISA_NAMESPACE
HWY_AFTER_NAMESPACE();
