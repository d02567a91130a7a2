// Which elements of a row survive dropout, as masks of the compute type.
#pragma once

#include "xformers/kernels/cpu/base/philox-inl.h"
#include "xformers/kernels/params/dropout.h"

HWY_BEFORE_NAMESPACE();
namespace xformers::cpu::XFORMERS_ISA_NAMESPACE {

// Columns that one vector of calls draws for.
inline constexpr ptrdiff_t kDrawnColumns = 8 * lanes<uint64_t>();

// What a call of the layer needs to know about its dropout.
struct KeepDraws {
  explicit KeepDraws(const Dropout& dropout)
      : active(dropout.p > 0),
        scale(dropout.p < 1 ? 1 / (1 - dropout.p) : 0),
        lowest_kept(static_cast<uint16_t>(min_of(drop_threshold(dropout.p), 0xffff))),
        all_dropped(drop_threshold(dropout.p) > 0xffff),
        key(philox_key(dropout.philox_seed, dropout.philox_offset)) {}

  bool active;
  double scale;          // of what is kept
  uint16_t lowest_kept;  // draw
  bool all_dropped;
  PhiloxKey key;
};

// The draws of columns [first, first + count) of a row; first a multiple of kDrawnColumns, as is draws' room.
HWY_INLINE void fill_draws(const KeepDraws& keep, uint64_t row, int64_t first, ptrdiff_t count,
                           uint16_t* HWY_RESTRICT draws) {
  if (keep.all_dropped) return zero_row(draws, count);
  const Tag<uint64_t> d;
  constexpr ptrdiff_t kLanes = lanes<uint64_t>();
  const auto pair = [](VecU64 low_half, VecU64 high_half) {  // of which the low halves count
    const Tag<uint32_t> d32;
    return hn::BitCast(Tag<uint64_t>(),
                       hn::OddEven(hn::BitCast(d32, hn::ShiftLeft<32>(high_half)), hn::BitCast(d32, low_half)));
  };
  // Lanes 2 b and 2 b + 1 draw for eight columns each that come b and b + kLanes / 2 blocks of eight after the first:
  // so interleaving pairs of lanes puts the draws in order.
  alignas(64) uint64_t block[kLanes];
  for (ptrdiff_t lane = 0; lane < kLanes; ++lane) {
    block[lane] = static_cast<uint64_t>(first / 8 + lane / 2 + lane % 2 * (kLanes / 2));
  }
  auto counter = hn::Load(d, block);
  for (ptrdiff_t i = 0; i < count; i += kDrawnColumns) {
    VecU64 words[4] = {counter, hn::Set(d, row), hn::Set(d, row >> 32), hn::Set(d, uint64_t{keep.key.offset})};
    philox_wide(words, keep.key.key0, keep.key.key1);
    const auto low = pair(words[0], words[1]), high = pair(words[2], words[3]);
    auto* out = reinterpret_cast<uint64_t*>(draws + i);
    hn::Store(hn::InterleaveLower(d, low, high), d, out);
    hn::Store(hn::InterleaveUpper(d, low, high), d, out + kLanes);
    counter = hn::Add(counter, hn::Set(d, uint64_t{kLanes}));
  }
}

// Zero where the draw is below lowest_kept, and whatever v is, NaN too.
HWY_INLINE Vec<float> drop(Vec<float> v, const uint16_t* HWY_RESTRICT draws, uint16_t lowest_kept) {
#if XFORMERS_AVX512
  const __m256i drawn = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(draws));
  const __mmask16 kept = _mm256_cmpge_epu16_mask(drawn, _mm256_set1_epi16(static_cast<int16_t>(lowest_kept)));
  return Vec<float>{_mm512_maskz_mov_ps(kept, v.raw)};
#else
  const Tag<float> d_float;
  const hn::RebindToSigned<decltype(d_float)> d;
  const hn::Rebind<uint16_t, decltype(d)> d16;
  const auto kept = hn::Gt(hn::PromoteTo(d, hn::LoadU(d16, draws)), hn::Set(d, int32_t{lowest_kept} - 1));
  return hn::IfThenElseZero(hn::RebindMask(d_float, kept), v);
#endif
}
HWY_INLINE Vec<double> drop(Vec<double> v, const uint16_t* HWY_RESTRICT draws, uint16_t lowest_kept) {
  const Tag<double> d;
  alignas(64) double part[lanes<double>()];
  hn::Store(v, d, part);
  for (ptrdiff_t i = 0; i < lanes<double>(); ++i) part[i] = draws[i] >= lowest_kept ? part[i] : 0;
  return hn::Load(d, part);
}

}  // namespace xformers::cpu::XFORMERS_ISA_NAMESPACE
HWY_AFTER_NAMESPACE();
