// base/philox.h over vectors.
#pragma once

#include "xformers/kernels/base/philox.h"
#include "xformers/kernels/cpu/base/vec-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xformers::cpu::XFORMERS_ISA_NAMESPACE {

using VecU32 = hn::Vec<Tag<uint32_t>>;

HWY_INLINE void multiply_wide(VecU32 a, VecU32 b, VecU32& high, VecU32& low) {
  const Tag<uint32_t> d;
  const hn::RepartitionToWide<Tag<uint32_t>> d64;
  const auto even = hn::MulEven(a, b);
  const auto odd = hn::MulEven(hn::BitCast(d, hn::ShiftRight<32>(hn::BitCast(d64, a))), b);
  high = hn::OddEven(hn::BitCast(d, odd), hn::BitCast(d, hn::ShiftRight<32>(even)));
  low = hn::OddEven(hn::BitCast(d, hn::ShiftLeft<32>(odd)), hn::BitCast(d, even));
}

// Rounds [begin, end) of a call per lane. c: in the counters or the state before, out the words or the state.
HWY_INLINE void philox_vec(VecU32 (&c)[4], uint32_t key0, uint32_t key1, int begin, int end) {
  const Tag<uint32_t> d;
  const auto mul0 = hn::Set(d, kPhiloxMul0), mul1 = hn::Set(d, kPhiloxMul1);
  key0 += static_cast<uint32_t>(begin) * kPhiloxWeyl0;
  key1 += static_cast<uint32_t>(begin) * kPhiloxWeyl1;
  for (int round = begin; round < end; ++round) {
    VecU32 high0, low0, high1, low1;
    multiply_wide(c[0], mul0, high0, low0);
    multiply_wide(c[2], mul1, high1, low1);
    c[0] = hn::Xor3(high1, c[1], hn::Set(d, key0));
    c[1] = low1;
    c[2] = hn::Xor3(high0, c[3], hn::Set(d, key1));
    c[3] = low0;
    key0 += kPhiloxWeyl0;
    key1 += kPhiloxWeyl1;
  }
}

using VecU64 = hn::Vec<Tag<uint64_t>>;

// A call per 64-bit lane, whose low half counts: products take nothing else, so that whatever is in the high halves may
// stay there. Half the instructions per call.

HWY_INLINE void philox_wide(VecU64 (&c)[4], uint32_t key0, uint32_t key1) {
  const Tag<uint64_t> d;
  const Tag<uint32_t> d32;
  const auto multiply = [&](VecU64 a, uint64_t b) {
    return hn::MulEven(hn::BitCast(d32, a), hn::BitCast(d32, hn::Set(d, b)));
  };
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const auto product0 = multiply(c[0], kPhiloxMul0), product1 = multiply(c[2], kPhiloxMul1);
    c[0] = hn::Xor3(hn::ShiftRight<32>(product1), c[1], hn::Set(d, uint64_t{key0}));
    c[1] = product1;
    c[2] = hn::Xor3(hn::ShiftRight<32>(product0), c[3], hn::Set(d, uint64_t{key1}));
    c[3] = product0;
    key0 += kPhiloxWeyl0;
    key1 += kPhiloxWeyl1;
  }
}

}  // namespace xformers::cpu::XFORMERS_ISA_NAMESPACE
HWY_AFTER_NAMESPACE();
