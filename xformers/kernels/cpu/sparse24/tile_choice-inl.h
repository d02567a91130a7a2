// Which values of 4 x 4 tiles are kept (params/sparse24.h), without branches: a lane is a tile. Its 16 values are
// sorted by (key, place), then visited; what rows and columns hold so far is two bit sets.
#pragma once

#include "xformers/kernels/cpu/base/rows-inl.h"
#include "xformers/kernels/params/sparse24.h"

HWY_BEFORE_NAMESPACE();
namespace xformers::cpu::XFORMERS_ISA_NAMESPACE {

// A block of tiles is worked on at a time: 64 x 64 values, 16 x 16 tiles.
inline constexpr ptrdiff_t kSide = 64, kTiles = kSide / 4;

// ---- keys: 16 bits, the larger the earlier, equal for equal values; 0 where there is no value ----
// Bits of fp16 and bf16, of which `infinity` is known.
HWY_INLINE void keys_of_row(const uint16_t* HWY_RESTRICT x, uint16_t infinity, bool magnitudes, ptrdiff_t count,
                            uint16_t* HWY_RESTRICT keys) {
  const hn::ScalableTag<uint16_t> d;
  const ptrdiff_t step = static_cast<ptrdiff_t>(hn::MaxLanes(d));
  const auto sign = hn::Set(d, uint16_t{0x8000}), one = hn::Set(d, uint16_t{1}), all = hn::Set(d, uint16_t{0xffff});
  const auto signs = magnitudes ? hn::Zero(d) : sign, base = magnitudes ? one : sign;
  for (ptrdiff_t i = 0; i < count; i += step) {
    const auto bits = hn::LoadU(d, x + i), magnitude = hn::AndNot(sign, bits);
    const auto negative = hn::Ne(hn::And(bits, signs), hn::Zero(d));
    const auto key = hn::IfThenElse(negative, hn::Sub(base, magnitude), hn::Add(base, magnitude));
    hn::StoreU(hn::IfThenElse(hn::Gt(magnitude, hn::Set(d, infinity)), all, key), d, keys + i);
  }
}

// Wider types: 1 + how many values of the tile are smaller. x: what the tile's values compare as, 16 of them.
template <class C>
HWY_INLINE C comparable(C x, bool magnitudes) {  // NaN has no order: its places are told apart below
  return magnitudes && x < 0 ? -x : x;
}
template <class C>
HWY_INLINE void keys_of_tile(const C* x, ptrdiff_t stride, bool magnitudes, uint16_t* keys, ptrdiff_t key_stride) {
  C values[16];
  for (int i = 0; i < 16; ++i) values[i] = comparable(x[i / 4 * stride + i % 4], magnitudes);
  for (int i = 0; i < 16; ++i) {
    uint16_t smaller = 1;
    for (int j = 0; j < 16; ++j) smaller += values[j] < values[i] ? 1 : 0;
    keys[i / 4 * key_stride + i % 4] = values[i] != values[i] ? uint16_t{0xffff} : smaller;
  }
}

// ---- the choice ----
// What a rule says beside the keys: how much earlier each row of a tile comes, and in which rows one value is held
// already (the lower half of the sets: rows; the upper: columns).
struct TileRule {
  uint32_t row_first[4];
  uint32_t held;
};
HWY_INLINE TileRule tile_rule(Sparse24Rule rule) {
  if (rule != Sparse24Rule::kCausal1122) return {{0, 0, 0, 0}, 0};
  return {{3u << 20, 2u << 20, 1u << 20, 0}, 0b0011};
}

using LaneTag = hn::ScalableTag<uint32_t>;
using LaneVec = hn::Vec<LaneTag>;

// Of the place that the low four bits of a key name, backwards: its row and its column as bits 0 ... 7, itself as a bit
// from 16 on.
HWY_INLINE LaneVec place_bits(LaneVec key) {
#if XFORMERS_AVX512
  alignas(64) static constexpr uint32_t kBits[16] = {
      0x80000088, 0x40000048, 0x20000028, 0x10000018, 0x08000084, 0x04000044, 0x02000024, 0x01000014,
      0x00800082, 0x00400042, 0x00200022, 0x00100012, 0x00080081, 0x00040041, 0x00020021, 0x00010011};
  return LaneVec{_mm512_permutexvar_epi32(key.raw, _mm512_load_si512(kBits))};
#else
  const LaneTag d;
  const auto place = hn::AndNot(key, hn::Set(d, 15u)), one = hn::Set(d, 1u);
  const auto row = hn::Shl(one, hn::ShiftRight<2>(place)), column = hn::Shl(one, hn::And(place, hn::Set(d, 3u)));
  return hn::Or(hn::Or(row, hn::ShiftLeft<4>(column)), hn::ShiftLeft<16>(hn::Shl(one, place)));
#endif
}

// Green's network: 60 exchanges put 16 values in falling order.
HWY_INLINE void sort_falling(LaneVec (&v)[16]) {
  static constexpr uint8_t kPairs[60][2] = {
      {0, 1},   {2, 3},   {4, 5},   {6, 7},   {8, 9},  {10, 11}, {12, 13}, {14, 15}, {0, 2},  {4, 6},
      {8, 10},  {12, 14}, {1, 3},   {5, 7},   {9, 11}, {13, 15}, {0, 4},   {8, 12},  {1, 5},  {9, 13},
      {2, 6},   {10, 14}, {3, 7},   {11, 15}, {0, 8},  {1, 9},   {2, 10},  {3, 11},  {4, 12}, {5, 13},
      {6, 14},  {7, 15},  {5, 10},  {6, 9},   {3, 12}, {13, 14}, {4, 8},   {7, 11},  {1, 2},  {1, 4},
      {7, 13},  {2, 8},   {11, 14}, {2, 4},   {5, 6},  {9, 10},  {11, 13}, {3, 8},   {7, 12}, {6, 8},
      {10, 12}, {3, 5},   {7, 9},   {3, 4},   {5, 6},  {7, 8},   {9, 10},  {11, 12}, {6, 7},  {8, 9}};
#pragma GCC unroll 60
  for (int i = 0; i < 60; ++i) {
    LaneVec &a = v[kPairs[i][0]], &b = v[kPairs[i][1]];
    const auto high = hn::Max(a, b);
    b = hn::Min(a, b);
    a = high;
  }
}

// masks[t] of the tiles in 4 rows of keys, 64 columns.
HWY_INLINE void choose_tiles(const uint16_t* HWY_RESTRICT keys, const TileRule& rule, uint16_t* HWY_RESTRICT masks) {
  const LaneTag d;
  const hn::Rebind<uint16_t, LaneTag> d16;
  constexpr ptrdiff_t kLanes = static_cast<ptrdiff_t>(hn::MaxLanes(LaneTag()));
  const auto high_half = hn::Set(d, 0xffff0000u);
  for (ptrdiff_t t = 0; t < kTiles; t += kLanes) {
    LaneVec v[16];
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
      const auto* row = reinterpret_cast<const uint32_t*>(keys + r * kSide + 4 * t);
      const auto first = hn::LoadU(d, row), second = hn::LoadU(d, row + kLanes);
      const auto left = hn::ConcatEven(d, second, first), right = hn::ConcatOdd(d, second, first);
      const auto place = [&](int column, LaneVec key) HWY_ATTR {  // key: its low 16 bits, 4 higher
        v[4 * r + column] = hn::Or(key, hn::Set(d, rule.row_first[r] | static_cast<uint32_t>(15 - 4 * r - column)));
      };
      place(0, hn::ShiftRight<12>(hn::ShiftLeft<16>(left)));
      place(1, hn::ShiftRight<12>(hn::And(left, high_half)));
      place(2, hn::ShiftRight<12>(hn::ShiftLeft<16>(right)));
      place(3, hn::ShiftRight<12>(hn::And(right, high_half)));
    }
    sort_falling(v);
    auto held = hn::Set(d, rule.held), full = hn::Zero(d);  // rows and columns that hold one value or more, two
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
      const auto bits = place_bits(v[i]);
      const auto kept = hn::IfThenElseZero(hn::Eq(hn::And(full, bits), hn::Zero(d)), bits);
      full = hn::Or(full, hn::And(held, kept));
      held = hn::Or(held, kept);
    }
    hn::StoreU(hn::DemoteTo(d16, hn::BitCast(hn::RebindToSigned<LaneTag>(), hn::ShiftRight<16>(held))), d16, masks + t);
  }
}

}  // namespace xformers::cpu::XFORMERS_ISA_NAMESPACE
HWY_AFTER_NAMESPACE();
